"""What the own files of a store, a run or a grid say: which of them it is, how far it is, and who writes it here."""

import json
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.grid_folders import FAILED_FILE, GRID_FILE, cells_of, failure_of, is_finished, names_of
from shared.json_files import read_json
from shared.runlog import METRICS_FILE, duration, read_records
from shared.store.verify import store_status

_PACE_RECORDS = 20
"""Records of a log that the pace of a training is taken from."""

_CHECKPOINT = re.compile(r"step_(\d{8})")


def kind_from(target: Path, submitted: Sequence[Mapping[str, Any]]) -> str:
    """`store`, `run` or `grid`, by the files of a folder and its jobs; "" for none of them.

    Args:
        target: The folder, which need not be there yet.
        submitted: Its jobs (`submit.read_submitted`).
    """
    if target.suffix == ".zarr":
        return "store"
    jobs = {record["name"] for record in submitted}
    if "train" in jobs or ((target / "config.json").is_file() and not _is_a_model(target)):
        return "run"
    if (target / FAILED_FILE).is_file():  # a training that failed before its first step leaves nothing else
        return "run"
    is_grid = jobs or any((target / name).is_file() for name in (GRID_FILE, "table.json")) or cells_of(target)
    return "grid" if is_grid else ""


def _is_a_model(folder: Path) -> bool:
    """Whether a folder's `config.json` is that of a model, which lie in runs and beside them."""
    try:
        config = read_json(folder / "config.json")
    except DataError:
        return False
    return "recipe" not in config and ("model_type" in config or (folder / "model.safetensors").is_file())


def is_written_here(run: Path) -> bool:
    """Whether the process that trains or scores a run lives on this machine."""
    owner = _owner_of(run)
    try:
        command = Path(f"/proc/{int(owner['pid'])}/cmdline").read_bytes()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # numbers of processes come again
    return owner.get("host") == socket.gethostname() and b"train" in command


def _owner_of(run: Path) -> dict[str, Any]:
    """What a run's folder says of the process that trains or scores it, or did; empty if it says nothing of use."""
    try:
        return read_json(run / "owner.json")
    except DataError:
        return {}


def store_progress(path: Path) -> tuple[bool, dict[str, Any]]:
    """Whether a store is complete, and its shards, rows and answers so far.

    Raises:
        DataError: A damaged store.
    """
    if not path.exists():
        return False, {"shards": "0 (no store yet)"}
    found = store_status(path)
    return found["complete"], {
        "shards": f"{len(found['done_shards'])} of {found['num_shards']}",
        "rows": f"{found['rows_done']} of {found['num_rows']}",
        "answers": found["status_counts"],
    }


def run_progress(path: Path) -> tuple[bool, dict[str, Any]]:
    """Whether a run was trained to its end, and its steps, what is left or why it failed, and its last validation.

    Raises:
        DataError: A damaged file of the run.
    """
    config, reason = path / "config.json", failure_of(path)
    failed = {} if reason is None or (path / "done.json").is_file() else {"failed": reason}
    if not config.is_file():
        return False, {"steps": "0 (not begun)", **failed}
    try:
        steps = json.loads(config.read_text(encoding="utf-8"))["config"]["steps"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{config}: damaged, not the settings of a run ({error})") from error
    log = path / METRICS_FILE
    records = read_records(log) if log.is_file() else []
    saved = sorted(
        match[1]
        for file in (path / "checkpoints").glob("step_*")
        if (match := _CHECKPOINT.fullmatch(file.name))
    )
    done, step = (path / "done.json").is_file(), max((record["step"] for record in records), default=0)
    kept = int(saved[-1]) if saved else 0
    return done, {
        "steps": f"{max(step, kept)} of {steps}",  # a log may lag behind by some steps
        **({} if done else failed or _time_left(records, steps)),
        "checkpoint": f"step {kept}" if saved else "none",
        "resumed": sum(record.get("kind") == "resume" for record in records),
        **_validation(records),
    }


def _time_left(records: Sequence[Mapping[str, Any]], steps: int) -> dict[str, str]:
    """What the rest takes at the pace of the latest records, validations included; nothing before there are two."""
    timed = [(one["step"], one["seconds"]) for one in records if one.get("seconds") is not None][
        -_PACE_RECORDS:
    ]
    if len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        return {}
    pace = (timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])
    return {"left": f"about {duration(pace * (steps - timed[-1][0]))}"}


def _validation(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The latest oIoU of a run's log, at the images' own size; nothing before the first."""
    scores = [(one["step"], one["oiou_original"]) for one in records if one.get("oiou_original") is not None]
    return {"validation": f"oIoU {scores[-1][1]:.3f} at step {scores[-1][0]}"} if scores else {}


def grid_progress(path: Path, tasks: Sequence[Mapping[str, Any]]) -> tuple[bool, dict[str, Any]]:
    """Whether a grid is done, and how each cell fares that it was begun with.

    With tasks it is done when every one is: a task ends well only if all its cells have. Else the table says what was
    asked for (each call writes it at its end), and a call that goes on since then shows in the cells.

    Args:
        path: The grid.
        tasks: Of its jobs (`tasks.tasks_of`).

    Raises:
        DataError: A damaged file of the grid or of a cell.
    """
    named = names_of(path)
    hosts = {task["host"] for task in tasks if task["state"] == "running"}
    cells = dict.fromkeys(named, "not begun")
    for cell in cells_of(path):
        name = str(cell.relative_to(path))
        cells.setdefault(name, "not begun")
        if (reason := failure_of(cell)) is not None:
            cells[name] = f"failed: {reason}"
        elif (cell / "done.json").is_file():
            cells[name] = "done" if is_finished(cell) else "trained"
        elif (cell / "config.json").is_file():
            progress = run_progress(cell)[1]
            alive = "left" in progress and (is_written_here(cell) or _owner_of(cell).get("host") in hosts)
            cells[name] = progress["steps"] + (f", {progress['left']} left" if alive else "")
    table = path / "table.json"
    if tasks:
        done = all(task["state"] == "done" for task in tasks)
    else:
        written = read_json(table) if table.is_file() else {}
        done = not written.get("unfinished", True) and set(cells.values()) == {"done"}
    finished = sum(cells[name] == "done" for name in named)
    return done, {**({"runs": f"{finished} of {len(named)} done"} if named else {}), "cells": cells}
