"""Data set and training batches from Python, without the command line."""

from pathlib import Path

import pytest

from tests.stage2_train.miniature import write_data

EXAMPLE = """\
from shared.config import apply_overrides
from shared.datasets import load_dataset
from stage2_train.inputs import batch_plan, open_inputs
from stage2_train.loader import iterate
from stage2_train.recipes import RECIPES
from stage2_train.text import Tokenizer

config = apply_overrides(RECIPES["fixmatch-embedded"](), ["fraction=0.25", "batch_labelled=4"])  # as --set

dataset = load_dataset(config.data)
sample = dataset.samples("val")[0]
print(sample.expression, dataset.image(sample).size, dataset.mask(sample).sum())  # a mask is bool [H, W]

source = open_inputs(config).source(batch_plan(config), Tokenizer(config.segmentor))
for batch in iterate(source, range(3), workers=0, prefetch=2):  # batch k is the same whenever it is read
    labelled, unlabelled = batch.labelled, batch.unlabelled  # of "embedded" they also have a prior_B1HW each
    print(batch.step, labelled.image_BHW3.shape, labelled.target_BHW.shape, unlabelled.strong_BHW3.shape)
"""
"""What a reader is shown."""


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_data(tmp_path / "cache" / "data" / "refshapes")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(EXAMPLE, "example", "exec"), names)
    said = capsys.readouterr().out.splitlines()
    sample = dataset.samples("val")[0]
    assert said[0] == f"{sample.expression} {(sample.width, sample.height)} {dataset.mask(sample).sum()}"
    shapes = "torch.Size([4, 96, 96, 3]) torch.Size([4, 96, 96]) torch.Size([16, 96, 96, 3])"
    assert said[1:] == [f"{step} {shapes}" for step in range(3)]
