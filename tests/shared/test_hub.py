"""Models are fetched once from a Hub that answers on this machine, and found in the cache without one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import DataError
from shared.hub import HubModel, cached, is_repository, require_cached
from stage1_priors.config import MllmConfig, ProposerConfig
from stage1_priors.hub_models import hub_model
from tests.hub_server import serve_hub

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "stage1_priors" / "tiny" / "weights"
SAM_WEIGHTS = ROOT / "stage1_priors" / "tiny_sam" / "weights"
MLLM, SAM = MllmConfig(path="owner/name"), ProposerConfig(kind="sam2", path="owner/name")
SETTINGS = ("--set", "model.path=owner/tiny", "--set", "proposer.path=owner/sam")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The embedded models as repositories; one has a file that is nobody's business, one only old weights."""
    folder = tmp_path_factory.mktemp("repositories")
    for name, source in {"tiny": WEIGHTS, "sam": SAM_WEIGHTS, "old": WEIGHTS}.items():
        shutil.copytree(source, folder / name)
    (folder / "tiny" / "weights.onnx").write_bytes(bytes(10))
    (folder / "old" / "model.safetensors").rename(folder / "old" / "pytorch_model.bin")
    with serve_hub({f"owner/{name}": {"main": folder / name} for name in ("tiny", "sam", "old")}) as server:
        yield server


@pytest.fixture
def fetch(tmp_path):
    """The command, with a cache of its own and a Hub at some address."""

    def call(url, *arguments, offline="0"):
        environment = {
            **os.environ,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": url,
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
        }
        environment.pop("HF_HUB_CACHE", None)
        command = [sys.executable, "-m", "cli", "fetch", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return call


def test_both_models_are_fetched_once_and_then_found_without_the_hub(hub, fetch, tmp_path):
    hub.asked.clear()
    done = fetch(hub.url, "priors", "embedded", *SETTINGS, "--json")
    assert done.returncode == 0, done.stderr
    models = json.loads(done.stdout)["models"]
    assert [(one["field"], one["repository"]) for one in models] == [
        ("model.path", "owner/tiny"),
        ("proposer.path", "owner/sam"),
    ]
    for one, source in zip(models, (WEIGHTS, SAM_WEIGHTS), strict=True):
        folder = Path(one["folder"])
        assert folder.is_relative_to(tmp_path / "hf" / "hub")
        assert one["commit"] == folder.name == hub.commit(one["repository"], "main")
        assert (folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert hub.asked and not any("onnx" in line for line in hub.asked)
    hub.asked.clear()
    again = fetch(hub.url, "priors", "embedded", *SETTINGS, "--json")
    assert json.loads(again.stdout)["models"] == models and hub.asked == []
    assert fetch("http://127.0.0.1:9", "priors", "embedded", *SETTINGS, offline="1").returncode == 0


def test_towers_and_tokenizers_of_a_network(hub, fetch, tmp_path):
    """Old weights do where there are no safetensors; of a tokenizer none are fetched."""
    changes = (
        "segmentor.text.tokenizer=owner/tiny",
        f"segmentor.vision.weights=owner/old@{hub.commit('owner/old', 'main')}",
    )
    done = fetch(
        hub.url, "train", "embedded", *(part for one in changes for part in ("--set", one)), "--json"
    )
    assert done.returncode == 0, done.stderr
    tower, tokenizer = json.loads(done.stdout)["models"]
    assert tower["field"] == "segmentor.vision.weights" and tower["revision"] == tower["commit"]
    assert (Path(tower["folder"]) / "pytorch_model.bin").is_file()
    assert (Path(tokenizer["folder"]) / "tokenizer.json").is_file()
    assert not (Path(tokenizer["folder"]) / "model.safetensors").exists()


def test_a_grid_is_changed_as_its_runs_will_be(hub, fetch, tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text(
        'reference = "a"\nrecipe = "supervised-embedded"\nfractions = [0.5]\nseeds = [1]\n[methods.a]\n'
    )
    done = fetch(hub.url, "ablate", grid, "--set", "segmentor.text.tokenizer=owner/old", "--json")
    (words,) = json.loads(done.stdout)["models"]
    assert words["field"] == "segmentor.text.tokenizer" and words["commit"] == hub.commit("owner/old", "main")


def test_a_snapshot_without_processor_or_tokenizer_is_completed(hub, fetch):
    """As another program leaves it that wants the network alone: config and weights."""
    models = json.loads(fetch(hub.url, "priors", "embedded", *SETTINGS, "--json").stdout)["models"]
    mllm, sam = (Path(one["folder"]) for one in models)
    gone = [mllm / "preprocessor_config.json", mllm / "tokenizer.json", sam / "processor_config.json"]
    for file in gone:
        file.unlink()
    for listing in mllm.parents[3].rglob(
        "trees"
    ):  # which huggingface_hub keeps of what it has fetched as a whole
        shutil.rmtree(listing)
    told = fetch("http://127.0.0.1:9", "priors", "embedded", *SETTINGS, offline="1").stderr
    assert (
        "hub, which lacks preprocessor_config.json or processor_config.json, tokenizer.json or vocab" in told
    )
    assert fetch(hub.url, "priors", "embedded", *SETTINGS).returncode == 0
    assert all(file.is_file() for file in gone)


def test_folders_need_no_fetching(fetch):
    done = fetch("http://127.0.0.1:9", "priors", "embedded")
    assert done.returncode == 0 and done.stdout == "nothing to fetch: no model is named by a repository\n"


def test_what_cannot_be_fetched_is_one_line(hub, fetch, tmp_path):
    for url, offline, said in (
        ("http://127.0.0.1:9", "0", "it cannot be fetched (ConnectError: [Errno 111] Connection refused)"),
        ("http://127.0.0.1:9", "1", "it cannot be fetched (OfflineModeIsEnabled: "),
        (hub.url, "0", "it cannot be fetched (RepositoryNotFoundError: 404 "),
    ):
        done = fetch(url, "priors", "embedded", "--set", "model.path=owner/none", offline=offline)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(
            "error: model.path: owner/none (revision main) is neither a folder nor whole"
        )
        assert f"Hugging Face cache {tmp_path / 'hf' / 'hub'}, and {said}" in done.stderr, done.stderr


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """An empty snapshot of `owner/name` in a cache of its own."""
    repository = tmp_path / "models--owner--name"
    folder = repository / "snapshots" / ("1" * 40)
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return folder


def test_a_snapshot_counts_when_its_weights_are_whole(snapshot):
    model = HubModel(field="model.path", name="owner/name")
    (snapshot / "config.json").write_text("{}")
    assert cached(model) is None
    tokenizer = HubModel(field="x", name="owner/name", has_weights=False)
    assert cached(tokenizer) is None  # another program fetched the model's own files alone
    (snapshot / "vocab.txt").write_text("a")
    assert cached(tokenizer) == snapshot
    index = snapshot / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    (snapshot / "one.safetensors").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"model\.path: owner/name \(revision main\) is neither .*, which lacks two\.safetensors; "
        "`l2l fetch priors RECIPE` puts",
    ):
        require_cached(model)
    (snapshot / "two.safetensors").write_bytes(b"")
    assert require_cached(model) == snapshot
    assert cached(HubModel(field="x", name="owner/name", revision="1" * 40)) == snapshot
    assert cached(HubModel(field="x", name="owner/name", revision="2" * 40)) is None
    index.write_text("[]")
    with pytest.raises(DataError, match=r"index\.json: damaged"):
        cached(model)


def test_a_model_that_reads_or_looks_needs_its_tokenizer_or_processor(snapshot):
    mllm, sam = (hub_model(group, chosen) for group, chosen in (("model", MLLM), ("proposer", SAM)))
    tower = HubModel(field="segmentor.vision.weights", name="owner/name")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    assert cached(tower) == snapshot and cached(sam) is None and cached(mllm) is None
    (snapshot / "processor_config.json").write_text("{}")
    assert cached(sam) == snapshot and cached(mllm) is None
    (snapshot / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="which lacks tokenizer.json or vocab.json or tokenizer.model;"):
        require_cached(mllm)
    (snapshot / "tokenizer.json").write_text("{}")
    assert cached(mllm) == snapshot


def test_what_can_be_the_name_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert is_repository("owner/name")
    assert not any(map(is_repository, ("models/mine", "/a/b", "./a/b", "~/b", "name", "a/b/c", "")))
    with pytest.raises(DataError, match="no name of a repository"):
        cached(HubModel(field="model.path", name="owner/no name"))
