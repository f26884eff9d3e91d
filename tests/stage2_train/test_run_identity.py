"""A run is known by its settings and by what it reads, not by where that lies."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from shared.config import DataConfig, apply_overrides
from shared.datasets import load_dataset
from shared.errors import DataError
from stage2_train.config import TrainConfig
from stage2_train.evaluate import evaluate_run
from stage2_train.export_labels import export_labels
from stage2_train.inputs import open_split
from stage2_train.run_files import read_run_config
from stage2_train.run_identity import (
    difference_of_run,
    difference_of_split,
    require_same_run,
    run_record,
    split_record,
    with_recorded_pins,
)
from stage2_train.segmentor import build_segmentor
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config


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
    with pytest.raises(DataError, match=r"belongs to another run \(the data have other annotations now\)"):
        require_same_run(run, {**record, "data_fingerprint": "others"})


def test_a_damaged_record_is_named(mini_run: Path, tmp_path: Path) -> None:
    record = json.loads((mini_run / "config.json").read_text())
    now = run_record(mini_config(Path("x"), steps=2), "", (), None, None, 1)
    for damaged, message in (
        ({**record, "config": {**record["config"], "data": 5}}, r"config\.json: data is 5, not an object"),
        ({**record, "config": 5}, r"config\.json: has no 'config' object"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(DataError, match=message):
            read_run_config(tmp_path)
        with pytest.raises(DataError, match=r"config\.json: "):
            require_same_run(tmp_path, now)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        (["alarm.patience=0", "alarm.grace_steps=7", "runtime.workers=1", "runtime.log_every=3"], ""),
        (["accumulation=2"], r"accumulation is 1 there, 2 now"),
        (["eval_every=1"], r"eval_every is 0 there, 1 now"),
        (["precision=bf16"], r"precision is 'fp32' there, 'bf16' now"),
    ],
)
def test_what_may_change_when_a_run_is_gone_on_with(
    mini_root: Path, mini_run: Path, changes: list[str], refused: str
) -> None:
    """The number of processes too; a method's own settings, and how often it is validated, may not."""
    record = json.loads((mini_run / "config.json").read_text())
    config = apply_overrides(read_run_config(mini_run), changes)
    now = run_record(config, "", (), record["store"], record["data_fingerprint"], 4)
    assert re.fullmatch(refused, difference_of_run(mini_run, now)) is not None


def test_a_run_outlives_a_move_of_its_weights(mini_root: Path, tmp_path: Path) -> None:
    first, second, run = (tmp_path / name for name in ("first", "second", "run"))
    shutil.copytree(mini_root / "tokenizer", first)
    plain = mini_config(mini_root, steps=2)
    torch.manual_seed(1)
    build_segmentor(plain.segmentor).save_pretrained(first / "whole")

    def lies(folder: Path) -> TrainConfig:
        return apply_overrides(
            plain,
            [
                f"segmentor.text.tokenizer={folder}",
                f"segmentor.weights={folder / 'whole' / 'model.safetensors'}",
            ],
        )

    def noted() -> dict:
        return json.loads((run / "config.json").read_text())["config"]["segmentor"]

    train(lies(first), run, quiet=True)
    (run / "done.json").unlink()
    first.rename(second)
    train(lies(second), run, quiet=True)
    assert (run / "done.json").is_file()
    assert noted()["text"]["tokenizer"] == str(second) and noted()["weights"].startswith(str(second))
    shutil.copytree(second, first)
    assert train(lies(first), run, quiet=True)["already_finished"]

    shutil.rmtree(first)
    assert train(lies(second), run, quiet=True)["already_finished"]
    gone = second.rename(tmp_path / "gone")
    assert train(lies(second), run, quiet=True)["already_finished"], "what is gone is known by its name"
    with pytest.raises(DataError, match="segmentor.text.tokenizer is .*second"):
        train(lies(first), run, quiet=True)
    shutil.copytree(gone, second)
    with (second / "vocab.txt").open("a") as file:
        file.write("another\n")
    with pytest.raises(DataError, match=r"segmentor.text.tokenizer is 'files [0-9a-f]{32}' there, 'files "):
        train(lies(second), run, quiet=True)


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


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("runtime.workers=3", True),
        ("cache_root=x", True),
        ("data.root=x", True),
        ("store=x", True),
        ("seed=9", False),
        ("split_seed=9", False),
        ("fraction=0.5", False),
        ("steps=9", False),
        ("data.split_by=google", False),
        ("misplaced_priors=0.5", False),
        ("l2l.use_rple=false", False),
    ],
)
def test_a_run_is_known_by_its_settings_and_not_by_its_places(
    mini_root: Path, tmp_path: Path, change: str, same: bool
) -> None:
    config = mini_config(mini_root)
    assert apply_overrides(config, [change]) != config
    (tmp_path / "config.json").write_text(json.dumps(run_record(config, "", (), None, "data", 1)))
    differing = difference_of_run(
        tmp_path, run_record(apply_overrides(config, [change]), "x", (change,), None, "data", 4)
    )
    assert differing == "" if same else differing.startswith(f"{change.partition('=')[0]} is ")


def test_a_run_is_known_by_the_content_of_its_store_and_its_data(mini_root: Path, tmp_path: Path) -> None:
    config = mini_config(mini_root)

    def record(path: str, fingerprint: str, data: str) -> dict:
        return run_record(config, "", (), {"path": path, "fingerprint": fingerprint}, data, 1)

    (tmp_path / "config.json").write_text(json.dumps(record("here", "a", "data")))
    assert difference_of_run(tmp_path, record("there", "a", "data")) == ""
    assert difference_of_run(tmp_path, record("here", "b", "data")) == "store is 'a' there, 'b' now"
    assert difference_of_run(tmp_path, record("here", "a", "other")) == "the data have other annotations now"


def test_other_labels_are_told(tmp_path: Path) -> None:
    old = {"fraction": 0.1, "seed": 1, "num_refs": 4, "image_ids": [1, 2], "masks": "m"}
    (tmp_path / "split.json").write_text(json.dumps(old))
    for changes, told in (
        ({}, ""),
        ({"seed": 2}, "seed is 1 there, 2 now"),
        ({"num_refs": 5}, "num_refs is 4 there, 5 now"),
        ({"image_ids": [1, 3]}, "other images are labelled"),
        ({"masks": "n"}, "masks have been redrawn"),
        ({"of_newer_code": 3}, ""),
    ):
        assert difference_of_split(tmp_path, old | changes) == told


def test_what_a_split_holds_is_of_the_labelled_part(mini_root: Path) -> None:
    config = dataclasses.replace(mini_config(mini_root), seed=5, split_seed=6)
    dataset = load_dataset(config.data)
    split = open_split(config, dataset)
    record = split_record(config, split, dataset)
    assert (record["seed"], record["fraction"], record["image_ids"]) == (6, 0.25, list(split.image_ids))
    assert record["num_train_images"] == len({sample.image_id for sample in dataset.samples("train")})
    assert record["masks"] == dataset.masks_hash([sample for ref in split.labelled for sample in ref])
