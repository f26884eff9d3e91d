"""The exported folder: it stands alone, gives the same network back, and its card says what was measured."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin

from shared.errors import DataError
from shared.refer import load_refer
from stage2_train.evaluate import evaluate_run
from stage2_train.model_card import model_card
from stage2_train.recipes import RECIPES
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
    kept = {path.name for path in (tmp_path / "moved").iterdir()}
    assert (
        {path.name for path in (tmp_path / "again").iterdir()} == kept >= {"vocab.txt", "model.safetensors"}
    )
    for name in ("README.md", "config.json"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "moved" / name).read_text()
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
    head = ModelCard.load(run / "model" / "README.md").data
    assert head.license == "apache-2.0" and "l2l" in head.tags and head.eval_results is None
    assert (
        "| method | l2l |" in card
        and "| seed | 22 |" in card
        and "| recipe | mini --set steps=2 --set data.root=... |" in card
    )
    split = json.loads((run / "split.json").read_text())
    shares = f"| labelled | {len(split['image_ids'])} images of {split['num_train_images']} train images, "
    assert shares in card and "Not scored yet." in card
    evaluate_run(run, "val")
    card = (run / "model" / "README.md").read_text()
    scores = json.loads((run / "eval" / "val.json").read_text())
    assert f"| val | {scores['num']} | original | network | {scores['original']['oiou']:.4f} |" in card
    assert f"| 32x32 | network | {scores['model']['oiou']:.4f} |" in card
    assert "frozen prior | not known" in card and "Not scored" not in card
    found = ModelCard.load(run / "model" / "README.md").data.eval_results
    assert {(e.dataset_split, e.metric_type): e.metric_value for e in found} == {
        ("val", name): round(scores["original"][name], 4) for name in ("oiou", "miou")
    }
    data = load_refer(mini_root / "data", "refshapes", "unc")
    store = write_priors(tmp_path / "all.zarr", data, splits=("val",), fingerprint="e" * 16)
    scores = evaluate_run(run, "val", store=str(store))
    card = (run / "model" / "README.md").read_text()
    assert f"| original | frozen prior | {scores['prior']['original']['oiou']:.4f} |" in card
    assert "not known" not in card


def test_scores_of_other_data_are_not_published_as_the_runs_own(run, mini_root, tmp_path):
    other = shutil.copytree(mini_root / "data", tmp_path / "data")
    (other / "refshapes").rename(other / "others")
    with (other / "others" / "instances.json").open("a") as file:
        file.write("\n")
    evaluate_run(run, "val", quiet=True)
    scores = evaluate_run(run, "val", root=str(other), dataset_name="others", quiet=True)
    named = evaluate_run(run, "val", data_name="blurred", quiet=True)  # the same annotations, of other images
    assert named["data"]["annotations"] != scores["data"]["annotations"]
    card = (run / "model" / "README.md").read_text()
    assert f"| others-val (other data: others, unc) | {scores['num']} | original | network |" in card
    assert "| blurred-val (other data: refshapes, unc) |" in card and "| val |" in card
    found = ModelCard.load(run / "model" / "README.md").data.eval_results
    assert {(e.dataset_type, e.dataset_split) for e in found} == {("refshapes", "val")} and len(found) == 2


@pytest.mark.parametrize(
    ("weights", "said"), [("/where/lavt.safetensors", True), ("embedded", False), (None, False)]
)
def test_the_card_of_a_run_that_goes_on_with_a_trained_network_says_so(run, tmp_path, weights, said):
    for name in ("config.json", "split.json"):
        shutil.copy(run / name, tmp_path)
    record = json.loads((run / "config.json").read_text())
    record["config"]["segmentor"]["weights"] = weights
    (tmp_path / "config.json").write_text(json.dumps(record))
    card = str(model_card(tmp_path))
    assert ("own labels are not counted among the labelled (lavt.safetensors)" in card) is said
    assert "/where" not in card


def test_a_run_stands_for_its_model(run):
    ours, same = (ReferringSegmentor.from_pretrained(folder) for folder in (run, run / "model"))
    assert all(torch.equal(one, two) for one, two in zip(ours.parameters(), same.parameters(), strict=True))


def test_what_is_pushed_is_the_folder(run, monkeypatch):
    model = ReferringSegmentor.from_pretrained(run / "model")
    assert isinstance(model, PyTorchModelHubMixin)
    pushed = {}

    def upload(self, *, repo_id, folder_path, **options):
        pushed[repo_id] = {path.name: path.read_bytes() for path in folder_path.iterdir()}

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **options: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model.push_to_hub("someone/model")
    assert pushed == {"someone/model": {path.name: path.read_bytes() for path in (run / "model").iterdir()}}


def test_a_network_saved_outside_a_run_claims_nothing(tmp_path):
    ReferringSegmentor(RECIPES["embedded"]().segmentor).save_pretrained(tmp_path)
    assert "nothing is known of its training" in (tmp_path / "README.md").read_text()
