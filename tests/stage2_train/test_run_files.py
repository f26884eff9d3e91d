"""A run keeps to the store that it began with, whatever stores are made since, and follows data that are moved."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from shared.config import DataConfig, apply_overrides
from shared.errors import DataError
from shared.refer import load_refer
from stage2_train.ablate import DONE, describe_grid
from stage2_train.ablate_grid import read_grid
from stage2_train.config import TrainConfig
from stage2_train.evaluate import evaluate_run
from stage2_train.export_labels import export_labels
from stage2_train.inputs import open_inputs
from stage2_train.prior_source import choose_store
from stage2_train.run_files import require_same_run, run_record, with_own_store, with_recorded_pins
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


def test_a_run_outlives_a_move_of_its_data(mini_root: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    shutil.copytree(mini_root / "data", first)
    run = tmp_path / "run"

    def lies(root: Path) -> DataConfig:
        return DataConfig(root=str(root), dataset="refshapes")

    def noted() -> str:
        return json.loads((run / "config.json").read_text())["config"]["data"]["root"]

    config = mini_config(mini_root, steps=2, data=lies(first))
    train(config, run, quiet=True)
    (run / "done.json").unlink()
    first.rename(second)
    train(dataclasses.replace(config, data=lies(second)), run, quiet=True)
    assert (run / "done.json").is_file() and noted() == str(second)

    second.rename(third)
    with pytest.raises(DataError, match="second"):
        evaluate_run(run, "val", quiet=True)
    assert evaluate_run(run, "val", root=str(third), limit=2, write=False, quiet=True)["num"] == 2
    assert noted() == str(second), "nothing was to be written"
    evaluate_run(run, "val", root=str(third), quiet=True)
    assert noted() == str(third)
    assert export_labels(run, tmp_path / "labels", batch=4, limit=4, quiet=True)["num"] == 4

    record = json.loads((run / "config.json").read_text())
    require_same_run(run, record)
    with pytest.raises(DataError, match=r"belongs to another run \(annotations is .* 'others' now"):
        require_same_run(run, {**record, "data_fingerprint": "others"})


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

    record = json.loads((run / "config.json").read_text())
    assert record["config"].pop("misplaced_priors") == 0.0
    (run / "config.json").write_text(json.dumps(record))  # as by a code that did not know the field
    now = run_record(config, "", (), {"path": str(moved), "fingerprint": "own"}, dataset.fingerprint(), 1)
    require_same_run(run, now)
    now["config"]["misplaced_priors"] = 0.5
    with pytest.raises(DataError, match=r"misplaced_priors is 0.0 there, 0.5 now"):
        require_same_run(run, now)


def test_a_run_is_one_whether_its_repositories_are_held_at_a_commit_or_not(
    mini_root: Path, tmp_path: Path
) -> None:
    """By hand they are not, by a batch job they are; two commits are two networks."""
    config = mini_config(mini_root)

    def of(name: str) -> TrainConfig:
        return apply_overrides(config, [f"segmentor.vision.weights={name}"])

    def is_same(there: str, now: str) -> bool:
        record = run_record(of(there), "", (), None, None, 1)
        (tmp_path / "config.json").write_text(json.dumps(record))
        own = with_recorded_pins(tmp_path, of(now))
        try:
            require_same_run(tmp_path, run_record(own, "", (), None, None, 1))
        except DataError as error:
            assert "segmentor.vision.weights is" in str(error)
            return False
        return own.segmentor.vision.weights == there

    assert is_same("some/swin", "some/swin@abc") and is_same("some/swin@abc", "some/swin")
    assert not is_same("some/swin@abc", "some/swin@abd") and not is_same("some/swin", "other/swin@abc")
    assert with_recorded_pins(tmp_path / "none", config) is config


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
    assert answer["store"]["path"] == str(narrow)
    assert answer["cells"][cell.name]["state"] == DONE, answer
