import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from shared.errors import DataError
from stage2_train import checkpoint
from stage2_train.checkpoint import (
    damaged_checkpoint,
    first_misfit,
    list_checkpoints,
    load_object,
    load_state,
    load_weights,
    save_checkpoint,
    shrink_checkpoint,
)


def save(folder: Path, step: int, keep: int = 1) -> Path:
    tied = torch.full((2, 3), float(step))
    return save_checkpoint(
        folder,
        step,
        {"model": {"a": tied, "tied": tied, "b": torch.arange(4)}},
        {"optimizer": {"state": {0: {"m": torch.ones(2), "n": 3}}}},
        {"seconds": 1.5},
        keep=keep,
    )


def test_round_trip(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    assert path.name == "step_00000007" and list_checkpoints(tmp_path) == [path]
    weights = load_weights(path, "model")
    assert torch.equal(weights["a"], torch.full((2, 3), 7.0)) and torch.equal(weights["b"], torch.arange(4))
    assert torch.equal(load_object(path, "optimizer")["state"][0]["m"], torch.ones(2))
    assert (load_state(path)["step"], load_state(path)["seconds"]) == (7, 1.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"bias": None}, "bias is missing"),
        ({"weight": torch.zeros(2, 4)}, "weight has shape (2, 4), the network (2, 3)"),
        ({"scale": torch.zeros(2)}, "the network has no scale"),
    ],
)
def test_what_does_not_fit_a_network_is_named(changes: dict[str, torch.Tensor | None], said: str) -> None:
    network = torch.nn.Linear(3, 2)
    weights = {
        name: value for name, value in {**network.state_dict(), **changes}.items() if value is not None
    }
    assert first_misfit(network, weights) == said


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000010"]


def test_the_old_one_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save(tmp_path, 1)

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 2)
    assert list_checkpoints(tmp_path) == [old]
    monkeypatch.undo()
    assert list_checkpoints(tmp_path) == [old]
    new = save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == [new.name]


def test_all_is_on_the_disk_before_it_is_published_and_that_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save(tmp_path, 1)
    done: list[tuple[str, str]] = []
    flush, replace, rmtree = checkpoint.sync, os.replace, checkpoint.shutil.rmtree

    def noted_flush(path: Path) -> None:
        flush(path)
        done.append(("flush", path.name))

    def noted_replace(here: Path, there: Path) -> None:
        replace(here, there)
        done.append(("publish", there.name))

    def noted_rmtree(path: Path) -> None:
        rmtree(path)
        done.append(("delete", path.name))

    monkeypatch.setattr(checkpoint, "sync", noted_flush)
    monkeypatch.setattr(checkpoint.os, "replace", noted_replace)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", noted_rmtree)
    new = save(tmp_path, 2)
    assert sorted(done[:3]) == [
        ("flush", name) for name in ("model.safetensors", "optimizer.pt", "state.json")
    ]
    assert done[3:] == [
        ("flush", f".writing_{new.name}"),
        ("publish", new.name),
        ("flush", tmp_path.name),
        ("delete", old.name),
    ]


def test_a_step_that_is_taken_again_replaces_what_was_there(tmp_path: Path) -> None:
    """A run that goes on from before a damaged checkpoint comes by that step once more."""
    path = save(tmp_path, 3)
    os.truncate(path / "model.safetensors", 40)
    assert save(tmp_path, 3) == path and list_checkpoints(tmp_path) == [path]
    assert torch.equal(load_weights(path, "model")["a"], torch.full((2, 3), 3.0))


def test_what_a_killed_process_left_of_another_step_goes(tmp_path: Path) -> None:
    (tmp_path / ".writing_step_00000002").mkdir()
    assert list(tmp_path.iterdir()) == [tmp_path / ".writing_step_00000002"]
    new = save(tmp_path, 3)
    assert list(tmp_path.iterdir()) == [new]


def test_weights_that_do_not_lie_in_order_are_kept_as_they_are(tmp_path: Path) -> None:
    """As those of a network in `channels_last` do."""
    weight = torch.arange(6.0).view(2, 3).t()
    assert not weight.is_contiguous()
    path = save_checkpoint(tmp_path, 1, {"model": {"w": weight}}, {}, {})
    assert torch.equal(load_weights(path, "model")["w"], weight)


def test_a_checkpoint_is_whole_while_it_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen, unlink = save(tmp_path, 1), [], Path.unlink

    def noted(file: Path, **options: bool) -> None:
        unlink(file, **options)
        seen.append(file.name)
        assert list_checkpoints(tmp_path) == [path]

    monkeypatch.setattr(Path, "unlink", noted)
    shrink_checkpoint(path, ["optimizer.pt"])
    assert seen == ["model.safetensors"] and list_checkpoints(tmp_path) == [path]
    assert sorted(file.name for file in path.iterdir()) == ["optimizer.pt", "state.json"]


@pytest.mark.parametrize(
    "harm", ["no state", "short file", "long file", "missing file", "torn state", "no list"]
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, harm: str) -> None:
    good, bad = save(tmp_path, 1, keep=2), save(tmp_path, 2, keep=2)
    if harm == "no state":
        (bad / "state.json").unlink()
    elif harm == "torn state":
        (bad / "state.json").write_text('{"step": 2, "fi')
    elif harm == "no list":
        (bad / "state.json").write_text('{"step": 2}')
    elif harm == "long file":
        with (bad / "optimizer.pt").open("ab") as file:
            file.write(b"more")
    elif harm == "missing file":
        (bad / "optimizer.pt").unlink()
    else:
        os.truncate(bad / "model.safetensors", 40)
    assert list_checkpoints(tmp_path) == [good]


def test_the_newest_one_damaged_is_named_and_what_a_kill_left_of_an_older_one_goes(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert damaged_checkpoint(tmp_path) is None
    newest = save(tmp_path, 2, keep=2)
    (newest / "model.safetensors").write_bytes(b"")
    assert damaged_checkpoint(tmp_path) == newest
    (tmp_path / "step_00000001" / "state.json").unlink()
    (newest / "state.json").write_text("[1, 2]")
    assert list_checkpoints(tmp_path) == [] and damaged_checkpoint(tmp_path) == newest
    save(tmp_path, 3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000003"]


def test_a_copy_under_a_name_of_its_own_is_no_checkpoint_and_stays(tmp_path: Path) -> None:
    copy = shutil.copytree(save(tmp_path, 1), tmp_path / "step_00000001-mine")
    new = save(tmp_path, 2)
    assert list_checkpoints(tmp_path) == [new] and copy.is_dir()


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = save(tmp_path, 1)

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "built"),)

    (path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), path / "archive.pt")
    (path / "empty.pt").touch()
    (path / "cut.pt").write_bytes((path / "archive.pt").read_bytes()[:-30])
    for name in ("evil", "archive", "empty", "cut"):
        with pytest.raises(DataError, match=f"{name}.pt: not a file of tensors"):
            load_object(path, name)
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize("size", [0, 5, 40])
def test_torn_weights_are_named(tmp_path: Path, size: int) -> None:
    path = save(tmp_path, 1)
    os.truncate(path / "model.safetensors", size)
    with pytest.raises(
        DataError, match=r"model\.safetensors: not a safetensors file .*; delete .*step_00000001"
    ):
        load_weights(path, "model")


def test_missing_parts_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(DataError, match="no 'ema'"):
        load_weights(path, "ema")
    with pytest.raises(DataError, match="no 'method'"):
        load_object(path, "method")


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device"),
        RuntimeError("file write failed"),
        OSError("No space left on device"),
    ],
)
def test_a_full_disk_is_an_error_of_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    older, kept = save(tmp_path, 0, keep=2), save(tmp_path, 1, keep=2)

    def full(*_arguments: Any) -> None:
        raise error

    name = {SafetensorError: "save_file", RuntimeError: "torch.save", OSError: "sync"}[type(error)]
    monkeypatch.setattr(f"stage2_train.checkpoint.{name}", full)
    with pytest.raises(DataError, match=f"of step 2: {error}; step_00000001 is safe: .* again with --resume"):
        save(tmp_path, 2)
    assert list_checkpoints(tmp_path) == [older, kept] == sorted(tmp_path.iterdir()), "parts take no room"
    with pytest.raises(DataError, match="there is none yet: make room"):
        save(tmp_path / "fresh", 2)
