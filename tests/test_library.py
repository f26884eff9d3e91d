"""Data set and training batches from Python, without the command line."""

import re
from pathlib import Path

import pytest

from tests.stage2_train.miniature import write_data

PAGE = Path(__file__).resolve().parents[1] / "stage2_train" / "comparing-runs.md"
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
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
