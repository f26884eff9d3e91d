"""A run keeps to the store that it began with, whatever stores are made since and wherever it is moved."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from shared.datasets import load_dataset
from shared.errors import DataError
from shared.json_files import write_json
from shared.refer import load_refer
from shared.store import publish
from stage2_train.ablate_grid import read_grid
from stage2_train.ablate_state import DONE, describe_grid
from stage2_train.checkpoint import list_checkpoints, load_object, load_state
from stage2_train.evaluate import evaluate_run
from stage2_train.export_labels import export_labels
from stage2_train.inputs import open_inputs, open_split
from stage2_train.run_files import (
    export_model,
    open_own_inputs,
    read_run_config,
    require_ended_as,
    restore_method,
    with_own_store,
)
from stage2_train.run_identity import require_same_run, run_record, split_record
from stage2_train.segmentor import build_segmentor
from stage2_train.store_choice import choose_store
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config, write_priors

GRID = """
reference = "l2l"
recipe = "embedded"
fractions = [0.25]
seeds = [1]
splits = ["val"]
set = ["data.root={root}/data", "cache_root={cache}", "steps=1", "batch_labelled=4", "batch_unlabelled=4"]
[methods.l2l]
"""


def test_a_wider_store_made_later_is_for_later_runs(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    config = mini_config(mini_root, cache_root=str(tmp_path / "stores"), steps=2)
    narrow = write_priors(tmp_path / "stores" / "narrow.zarr", dataset, fingerprint="narrow", model="a")
    run = tmp_path / "run"
    train(config, run, quiet=True)
    assert with_own_store(run, config).store == str(narrow)
    (run / "done.json").unlink()
    wide = write_priors(
        tmp_path / "stores" / "wide.zarr", dataset, fingerprint="wide", splits=("train", "val"), model="a"
    )
    train(config, run, quiet=True)
    assert (run / "done.json").is_file()
    train(config, tmp_path / "later", quiet=True)
    read = [
        json.loads((one / "config.json").read_text())["store"]["path"] for one in (run, tmp_path / "later")
    ]
    assert read == [str(narrow), str(wide)]
    for file in (wide / "proposal").glob("c.*"):  # whoever reads the wide store is told
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(DataError, match="wide.zarr"):
        export_labels(tmp_path / "later", tmp_path / "labels-later", batch=4, limit=4, quiet=True)
    assert export_labels(run, tmp_path / "labels", batch=4, limit=4, quiet=True)["num"] == 4

    shutil.rmtree(narrow)
    assert with_own_store(run, config) == config
    named = dataclasses.replace(config, store="x")
    assert with_own_store(run, named) == named and with_own_store(tmp_path, config) == config


def test_a_run_outlives_a_move_of_its_store_and_a_new_setting(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    stores = tmp_path / "stores"
    own = write_priors(stores / "own.zarr", dataset, fingerprint="own", splits=("train", "val"), model="a")
    config = mini_config(mini_root, cache_root=str(stores), store=str(own), steps=2)
    run = tmp_path / "run"
    train(config, run, quiet=True)
    write_priors(stores / "other.zarr", dataset, fingerprint="other", splits=("train", "val"), model="b")
    moved = own.rename(stores / "by-another-name.zarr")
    assert with_own_store(run, config).store == str(moved)
    assert evaluate_run(run, "val", limit=2, quiet=True)["prior_note"] == f"from {moved}"
    assert export_labels(run, tmp_path / "labels", batch=4, limit=4, quiet=True)["num"] == 4

    labels, gone = tmp_path / "labels-of-named", moved.rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(
        DataError, match=r"own.zarr: the store that .*run was trained with is gone; .*--store"
    ):
        export_labels(run, labels, batch=4, limit=4, quiet=True)
    unnamed = dataclasses.replace(config, store="")
    with pytest.raises(DataError, match=r"own.zarr: the store that .* is gone; .*; .*other.zarr is another"):
        open_own_inputs(run, unnamed, quiet=True)
    assert export_labels(run, labels, store=str(gone), batch=4, limit=4, quiet=True)["num"] == 4
    moved = gone.rename(moved)

    record = json.loads((run / "config.json").read_text())
    assert record["config"].pop("misplaced_priors") == 0.0
    (run / "config.json").write_text(json.dumps(record))  # as by a code that did not know the field
    now = run_record(config, "", (), {"path": str(moved), "fingerprint": "own"}, dataset.fingerprint(), 1)
    require_same_run(run, now)
    now["config"]["misplaced_priors"] = 0.5
    with pytest.raises(DataError, match=r"misplaced_priors is 0.0 there, 0.5 now"):
        require_same_run(run, now)


def test_another_store_under_the_name_of_a_finished_runs_own_is_told(mini_root: Path, tmp_path: Path) -> None:
    """One that is gone is not held against the run."""
    own = tmp_path / "own.zarr"
    config = mini_config(mini_root, store=str(own))
    dataset, run = load_dataset(config.data), tmp_path / "run"
    run.mkdir()
    store = {"path": str(own), "fingerprint": "own"}
    write_json(run / "config.json", run_record(config, "", (), store, dataset.fingerprint(), 1))
    write_json(run / "split.json", split_record(config, open_split(config, dataset), dataset))
    require_ended_as(run, config)
    write_priors(own, dataset, fingerprint="own")
    require_ended_as(run, config)
    shutil.rmtree(own)
    write_priors(own, dataset, fingerprint="other")
    with pytest.raises(DataError, match="store is 'own' there, 'other' now"):
        require_ended_as(run, config)
    require_ended_as(run, config, store_comes=True)


def test_of_copies_of_a_store_one_is_read(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    config = mini_config(mini_root, cache_root=str(tmp_path))
    first = write_priors(tmp_path / "a.zarr", dataset, fingerprint="own", model="a")
    shutil.copytree(first, tmp_path / "b.zarr")
    assert choose_store(config, dataset) == first


def test_a_finished_grid_stays_finished(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    cache, out = tmp_path / "stores", tmp_path / "out"
    narrow = write_priors(cache / "narrow.zarr", dataset, fingerprint="narrow", model="a")
    file = tmp_path / "grid.toml"
    file.write_text(GRID.format(root=mini_root, cache=cache))
    grid = read_grid(file)
    (cell,) = grid.cells
    folder = out / cell.name
    (folder / "eval").mkdir(parents=True)
    store = open_inputs(cell.config).store
    (folder / "config.json").write_text(
        json.dumps(run_record(cell.config, "embedded", (), store, dataset.fingerprint(), 1))
    )
    for name in ("done.json", "eval/val.json"):
        (folder / name).write_text("{}")
    write_priors(cache / "wide.zarr", dataset, fingerprint="wide", splits=("train", "val"), model="a")
    answer = describe_grid(grid, out)
    assert [one["path"] for one in answer["stores"]] == [str(narrow)]
    assert answer["cells"][cell.name]["state"] == DONE, answer


def test_a_methods_state_of_another_code_is_named(mini_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mini_run, tmp_path / "run"))
    (checkpoint,) = list_checkpoints(run / "checkpoints")
    state = load_object(checkpoint, "method")
    for changed in (
        {"actor": {"old": torch.zeros(1)}},
        {"actor_optimizer": {"state": {}, "param_groups": []}},
    ):
        torch.save(state | changed, checkpoint / "method.pt")
        _keep_whole(checkpoint)
        with pytest.raises(DataError, match="step_00000002: the state of method l2l is of another code"):
            restore_method(run, read_run_config(run))
    del state["critic"]
    torch.save(state, checkpoint / "method.pt")
    _keep_whole(checkpoint)
    with pytest.raises(DataError, match="is of another code: 'critic'"):
        restore_method(run, read_run_config(run))


def test_the_last_checkpoint_says_what_a_method_has_learnt(mini_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mini_run, tmp_path / "run"))
    (last,) = list_checkpoints(run / "checkpoints")
    earlier = Path(shutil.copytree(last, last.with_name("step_00000001")))
    learnt = load_object(last, "method")
    actor = {name: torch.zeros_like(value) for name, value in learnt["actor"].items()}
    torch.save(learnt | {"actor": actor}, earlier / "method.pt")
    _keep_whole(earlier)
    assert list_checkpoints(run / "checkpoints") == [earlier, last]
    found = restore_method(run, read_run_config(run)).state_dict()["actor"]
    assert all(torch.equal(found[name], value) for name, value in learnt["actor"].items())
    assert not all(torch.equal(found[name], value) for name, value in actor.items())


def _keep_whole(checkpoint: Path) -> None:
    """Let the checkpoint know the size of its changed file."""
    state = load_state(checkpoint)
    state["files"]["method.pt"] = (checkpoint / "method.pt").stat().st_size
    write_json(checkpoint / "state.json", state)


def test_a_finished_network_that_the_disk_has_no_room_for_is_an_error_of_one_line(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_segmentor(mini_config(mini_root).segmentor)

    def full(_folder: Path) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(
        DataError, match="model: cannot write the network: .*No space left.* again with --resume"
    ):
        export_model(model, tmp_path)


def test_weights_are_on_the_disk_before_the_config_says_so(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = publish.sync
    monkeypatch.setattr(publish, "sync", lambda path: (synced.append(path.name), real(path)))
    export_model(build_segmentor(mini_config(mini_root).segmentor), tmp_path)
    assert any(name.startswith(".model.safetensors.") for name in synced)
    assert any(name.startswith(".vocab.txt.") for name in synced)


@pytest.mark.parametrize(
    "use", [lambda run: evaluate_run(run, "val"), lambda run: export_labels(run, run / "labels")]
)
def test_data_that_lie_elsewhere_are_asked_for(mini_run: Path, tmp_path: Path, use) -> None:
    run = tmp_path / "run"
    shutil.copytree(mini_run, run)
    record = json.loads((run / "config.json").read_text())
    record["config"]["data"]["root"] = str(tmp_path / "gone")
    write_json(run / "config.json", record)
    with pytest.raises(DataError, match=r"gone: not there; --root says where the data of .*run lie now"):
        use(run)
