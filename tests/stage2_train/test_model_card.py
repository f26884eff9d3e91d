"""The exported folder: it stands alone, gives the same network back, and its card says what was measured."""

import json
import shutil

import pytest
import torch

from shared.errors import DataError
from shared.refer import load_refer
from stage2_train.evaluate import evaluate_run
from stage2_train.run_files import load_model
from stage2_train.segmentor import ReferringSegmentor
from stage2_train.text import Tokenizer
from tests.stage2_train.miniature import write_priors


@pytest.fixture
def run(mini_run, tmp_path):
    return shutil.copytree(mini_run, tmp_path / "run")


def test_the_folder_stands_alone(run, tmp_path, monkeypatch):
    trained = load_model(run)
    (run / "model").rename(tmp_path / "moved")
    shutil.rmtree(run)
    model = ReferringSegmentor.from_pretrained(tmp_path / "moved")
    assert (
        not model.training
        and json.loads((tmp_path / "moved" / "config.json").read_text())["text"]["tokenizer"] == "."
    )
    for name, value in trained.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    ids, mask = Tokenizer(model.config)(["big red star"])
    assert ids.shape == mask.shape == (1, 5)
    model.save_pretrained(tmp_path / "again")
    kept = {path.name for path in (tmp_path / "moved").iterdir()} - {"README.md"}
    assert (
        {path.name for path in (tmp_path / "again").iterdir()} == kept >= {"vocab.txt", "model.safetensors"}
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision: str(tmp_path / "again"))
    assert ReferringSegmentor.from_pretrained("someone/model", revision="main").config.text.max_tokens == 20


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "cannot be read"),
        ("config.json", "[]", "not a JSON object"),
        ("config.json", '{"nope": 1}', "has no field 'nope'"),
        ("vocab.txt", None, "no vocab.txt"),
        ("model.safetensors", None, "no such weights file"),
    ],
)
def test_a_damaged_folder_is_named(run, file, content, message):
    path = run / "model" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer(ReferringSegmentor.from_pretrained(run / "model").config)
    assert str(run / "model") in str(caught.value)


def test_what_is_no_folder_is_one_line():
    with pytest.raises(DataError, match="no-such-folder: neither a model folder nor a repository"):
        ReferringSegmentor.from_pretrained("no-such-folder")


def test_the_card_grows_with_what_was_measured(run, mini_root, tmp_path):
    card = (run / "model" / "README.md").read_text()
    head = card.split("---\n")[1]
    assert "license: " in head and '"l2l"' in head
    assert (
        "| method | l2l |" in card
        and "| seed | 22 |" in card
        and "| recipe | mini --set steps=2 --set data.root=... |" in card
    )
    assert "| share of the masks | 0.25 |" in card and "Not scored yet." in card
    evaluate_run(run, "val")
    card = (run / "model" / "README.md").read_text()
    scores = json.loads((run / "eval" / "val.json").read_text())
    assert f"| val | {scores['num']} | original | network | {scores['original']['oiou']:.4f} |" in card
    assert f"| 32x32 | network | {scores['model']['oiou']:.4f} |" in card
    assert "frozen prior | not known" in card and "Not scored" not in card
    data = load_refer(mini_root / "data", "refshapes", "unc")
    store = write_priors(tmp_path / "all.zarr", data, splits=("val",), fingerprint="e" * 16)
    scores = evaluate_run(run, "val", store=str(store))
    card = (run / "model" / "README.md").read_text()
    assert f"| original | frozen prior | {scores['prior']['original']['oiou']:.4f} |" in card
    assert "not known" not in card
