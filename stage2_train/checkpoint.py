"""Checkpoints that are whole or absent.

A checkpoint is a folder `step_XXXXXXXX` written under a temporary name, flushed to disk and renamed; the one before it
is deleted only afterwards. It holds tensors as safetensors or as `torch.save` files read with `weights_only=True`, and
one `state.json`. No random state is stored: every draw is keyed by (seed, step, ...).
"""

import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from shared.errors import DataError
from shared.json_files import write_json
from shared.store.publish import sync
from stage2_train.tensor_files import read_tensors

_NAME = re.compile(r"step_(\d{8})")
_STATE = "state.json"


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, Mapping[str, torch.Tensor]],
    states: Mapping[str, Any],
    state: Mapping[str, Any],
    keep: int = 1,
) -> Path:
    """Write and publish one checkpoint, then delete older ones.

    Args:
        folder: The run's `checkpoints` folder.
        step: Optimiser steps done.
        weights: Name -> state dict of tensors, each to `<name>.safetensors`.
        states: Name -> nested lists, dicts, numbers and tensors, each to `<name>.pt`.
        state: JSON-able values for `state.json`; `step` and file sizes are added.
        keep: How many of the newest checkpoints stay.

    Returns:
        The published folder.

    Raises:
        DataError: The tensors cannot be written; what was published before is there.
    """
    assert keep >= 1 and step >= 0
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / f"step_{step:08d}", folder / f".writing_step_{step:08d}"
    for leftover in folder.glob(".writing_*"):
        shutil.rmtree(leftover)
    temporary.mkdir()
    try:
        for name, tensors in weights.items():
            copies = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
            save_file(copies, temporary / f"{name}.safetensors")
        for name, value in states.items():
            torch.save(value, temporary / f"{name}.pt")
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        (temporary / _STATE).write_text(json.dumps({**state, "step": step, "files": sizes}, indent=1) + "\n")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
    except (SafetensorError, RuntimeError, OSError) as error:  # words for a full disk
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk is not the place for parts of no use
        kept = list_checkpoints(folder)
        safe = f"{kept[-1].name} is safe" if kept else "there is none yet"
        raise DataError(
            f"{folder}: cannot write a checkpoint of step {step}: {error}; {safe}: make room and run the same command "
            "again with --resume"
        ) from error
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync(folder)
    oldest = list_checkpoints(folder)[-keep:][0]
    for path in _published(folder):
        if path.name < oldest.name:  # whole, or what a kill left of one that was being deleted
            shutil.rmtree(path)
    return final


def shrink_checkpoint(checkpoint: Path, kept: Sequence[str]) -> None:
    """Delete all of a checkpoint but some of its files; it stays whole at every moment.

    Args:
        checkpoint: Its folder.
        kept: File names, for example `method.pt`.
    """
    state = load_state(checkpoint)
    dropped = [name for name in state["files"] if name not in kept]
    state["files"] = {name: size for name, size in state["files"].items() if name in kept}
    write_json(checkpoint / _STATE, state)
    for name in dropped:
        (checkpoint / name).unlink(missing_ok=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a folder, oldest first; anything unfinished or short is passed over."""
    return [path for path in _published(folder) if _is_whole(path)]


def damaged_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a folder if it is not whole: published it was, so that something has damaged it."""
    published = _published(folder)
    return published[-1] if published and not _is_whole(published[-1]) else None


def _published(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if _NAME.fullmatch(path.name)]


def _is_whole(path: Path) -> bool:
    try:
        files = json.loads((path / _STATE).read_text())["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The `state.json` of a checkpoint."""
    return json.loads((checkpoint / _STATE).read_text())


def load_weights(checkpoint: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors saved under `name`.

    Raises:
        DataError: The checkpoint has none of that name, or a damaged one.
    """
    path = checkpoint / f"{name}.safetensors"
    if not path.is_file():
        raise DataError(f"{path}: the checkpoint holds no {name!r}")
    try:
        return read_tensors(path)
    except DataError as error:
        raise DataError(f"{error}; delete {checkpoint}") from error


def first_misfit(module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> str:
    """The first tensor by which weights do not fit a network, in words; "" if all do."""
    own = module.state_dict()
    for name, value in own.items():
        if name not in weights:
            return f"{name} is missing"
        if weights[name].shape != value.shape:
            return f"{name} has shape {tuple(weights[name].shape)}, the network {tuple(value.shape)}"
    return next((f"the network has no {name}" for name in weights if name not in own), "")


def load_object(checkpoint: Path, name: str) -> Any:
    """The nested value saved under `name`; nothing but tensors and plain containers is ever built.

    Raises:
        DataError: The checkpoint has none of that name, or something else than such values in it.
    """
    path = checkpoint / f"{name}.pt"
    if not path.is_file():
        raise DataError(f"{path}: the checkpoint holds no {name!r}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path}: not a file of tensors and plain values; delete {checkpoint}") from error
