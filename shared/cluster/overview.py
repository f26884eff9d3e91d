"""How all the stores, runs and grids in a folder fare: a line for each."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from shared.cluster.status import kind_of, status_of
from shared.cluster.submit import read_submitted
from shared.errors import DataError

_GRAVEST = ("failed", "running", "waiting", "cancelled", "unfinished", "done")
"""States; the first of these that something in a folder has is the folder's."""


def overview_of(target: Path, now: float | None = None) -> dict[str, Any]:
    """How a store, run or grid fares, or those in a folder that is none of them, and in the folders in that.

    Args:
        target: Its folder.
        now: Seconds since the epoch (tests).

    Returns:
        What `status_of` returns. Of a folder `kind` is `folder`, and `progress` is `holds`: a line by path below it.

    Raises:
        DataError: No such folder, one that holds none of them, or a damaged file of the product that is asked for.
    """
    inside = [] if kind_of(target) or not target.is_dir() else _products(target, depth=2)
    if not inside:
        return status_of(target, now)
    states, lines = set(), {}
    for path in inside:
        state, lines[str(path.relative_to(target))] = _in_a_line(path, now)
        states.add(state)
    state = next(state for state in _GRAVEST if state in states)
    return {"path": str(target), "kind": "folder", "state": state, "progress": {"holds": lines}, "tasks": []}


def _products(folder: Path, depth: int) -> list[Path]:
    """Stores, runs and grids in a folder, and in the folders in it down to a depth; stores that only have jobs, too."""
    found: list[Path] = []
    inside = set(filter(Path.is_dir, folder.iterdir()))
    stores = {path.with_suffix(".zarr") for path in inside if path.suffix == ".jobs" and read_submitted(path)}
    for path in sorted(inside | stores):
        if kind_of(path):
            found.append(path)
        elif depth > 1:
            with suppress(PermissionError):
                found += _products(path, depth - 1)
    return found


def _in_a_line(path: Path, now: float | None) -> tuple[str, str]:
    """State of a product; its kind, state and how far it is, or what is damaged."""
    try:
        status = status_of(path, now)
    except DataError as error:
        return "failed", str(error)
    progress = status["progress"]
    far = [f"{name} {progress[name]}" for name in ("steps", "shards", "runs") if name in progress]
    why = [str(progress["failed"])] if status["state"] == "failed" and "failed" in progress else []
    return status["state"], ", ".join([status["kind"], status["state"], *far, *why])
