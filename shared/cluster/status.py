"""How a store, a run or a grid fares: what is done, running, failed and why, from its files.

This works on any machine that sees the folder. A task whose file nobody has touched for `SILENT_S` seconds is lost: it
was killed, or its node died. A submitted task without a file of its own has not started: it waits in the queue, or was
dropped from it. Files cannot tell which, nor whether a lost or stopped task will start again; Slurm is asked about
those where it can be, and about tasks that have been silent for a shorter time.
"""

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.cluster.queue import ACTIVE, WAITING, Queue, ask_queue
from shared.cluster.script import BEAT_S, START_MARK
from shared.cluster.submit import jobs_folder, read_submitted
from shared.errors import DataError
from shared.grid_folders import FAILED_FILE, GRID_FILE, cells_of, failure_of, is_finished, names_of
from shared.json_files import read_json
from shared.runlog import METRICS_FILE, duration, read_records
from shared.stopping import STOPPED
from shared.store.verify import store_status

SILENT_S = 6 * BEAT_S
"""A task that lives touches its file several times within this."""

_LAST = ("verify", "eval")
"""Jobs behind those that make the product: it is done once they are too. An earlier submission's do not count."""

_LATE, _LATE_S = "late", 2 * BEAT_S
"""A task that has been silent for so many seconds: it runs, unless Slurm knows better. Never shown."""
_NOT_KILLED = ("", "COMPLETED", *ACTIVE)
"""What Slurm says of one that was not: what it wrote at its end may be yet to be seen on a shared disk."""

_ASKED = ("waiting", "stopped", "lost", _LATE)
"""States of a task that the queue knows more about."""

_TAIL_BYTES = 65_536
"""End of a log that is looked at; every launcher of a training adds some kilobytes to what its processes said."""

_RAISED = re.compile(r"(\[rank\d+\]: )?([A-Za-z_]\w*\.)*[A-Z]\w*(Error|Exception)(: |$)")
_LAUNCHER = re.compile(r"[\w.]*ChildFailedError")
_QUEUED_AGAIN = re.compile(r"DUE TO (JOB REQUEUE|PREEMPTION|NODE FAILURE)")
_PACE_RECORDS = 20
"""Records of a log that the pace of a training is taken from."""
_CHECKPOINT = re.compile(r"step_(\d{8})")


def status_of(target: Path, now: float | None = None) -> dict[str, Any]:
    """How a store, run or grid fares.

    Args:
        target: Its folder; of jobs that wait it need not be there yet.
        now: Seconds since the epoch (tests).

    Returns:
        A JSON-able object: `path`, `kind` (`store`, `run` or `grid`), `state` (`done`, `failed`, `running`, `waiting`,
        `cancelled` or `unfinished`), `progress` (what the product's own files say) and `tasks`, those of the latest
        submission of each job: `name`, `task`, `job`, `state`, `host`, `restarts`, `log` and `why`.

    Raises:
        DataError: Neither a product nor jobs of one, or a file that is damaged.
    """
    submitted = read_submitted(jobs_folder(target))
    tasks = _tasks(jobs_folder(target), submitted, time.time() if now is None else now)
    kind = _kind(target, submitted)
    if not kind:
        raise DataError(f"{target}: neither a store (*.zarr) nor a run or grid, and no jobs of one")
    if kind == "store":
        done, progress = _store(target)
    else:
        done, progress = _run(target) if kind == "run" else _grid(target, tasks)
    if not tasks and not target.exists():
        raise DataError(f"{target}: not there, and no jobs were submitted for it")
    state = _overall(done, tasks) if tasks else _state_here(target, kind, done)
    progress.pop("failed" if state == "running" else "left", None)  # a start has yet to take up what failed
    return {
        "path": str(target),
        "kind": kind,
        "state": state,
        "progress": progress,
        "tasks": tasks,
    }


def kind_of(target: Path) -> str:
    """`store`, `run` or `grid`, by the files of a folder or its jobs; "" for none of them."""
    return _kind(target, read_submitted(jobs_folder(target)))


def _kind(target: Path, submitted: Sequence[Mapping[str, Any]]) -> str:
    """`kind_of`, of a folder with these submissions."""
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


def _overall(done: bool, tasks: Sequence[Mapping[str, Any]]) -> str:
    """One word for all: a product that is there but did not pass its check has failed."""
    states = [task["state"] for task in tasks if not done or task["name"] in _LAST]
    for state, word in (
        ("running", "running"),
        ("failed", "failed"),
        ("lost", "failed"),
        ("stopped", "waiting"),
        ("waiting", "waiting"),
        ("cancelled", "cancelled"),
    ):
        if state in states:
            return word
    return "done" if done else "unfinished"


def _state_here(target: Path, kind: str, done: bool) -> str:
    """One word for what no batch job does: a run or grid tells by its owner, if that lives on this machine."""
    runs = {"run": [target], "grid": cells_of(target)}.get(kind, [])
    failed = [failure_of(run) is not None for run in runs]
    if any(is_written_here(run) for run, over in zip(runs, failed, strict=True) if not over):
        return "running"
    if done:
        return "done"
    return "failed" if any(failed) else "unfinished"


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


def _store(path: Path) -> tuple[bool, dict[str, Any]]:
    if not path.exists():
        return False, {"shards": "0 (no store yet)"}
    found = store_status(path)
    return found["complete"], {
        "shards": f"{len(found['done_shards'])} of {found['num_shards']}",
        "rows": f"{found['rows_done']} of {found['num_rows']}",
        "answers": found["status_counts"],
    }


def _run(path: Path) -> tuple[bool, dict[str, Any]]:
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


def _grid(path: Path, tasks: Sequence[Mapping[str, Any]]) -> tuple[bool, dict[str, Any]]:
    """All cells that the grid was begun with, and whether it is done.

    With tasks it is when every one is: a task ends well only if all its cells have. Else the table says what was asked
    for (each call writes it at its end), and a call that goes on since then shows in the cells.
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
            progress = _run(cell)[1]
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


def _tasks(folder: Path, submitted: Sequence[Mapping[str, Any]], now: float) -> list[dict[str, Any]]:
    """The tasks of the latest submission of each job, in order."""
    parts = [
        (name, number, part)
        for name, jobs in _latest(submitted).items()
        for number, part in sorted(jobs.items())
    ]
    fares = [_fare(folder, name, number, part.job, now) for name, number, part in parts]
    asked = {
        part.job: part.script
        for (_, _, part), fare in zip(parts, fares, strict=True)
        if fare["state"] in _ASKED
    }
    if asked:
        queue = ask_queue(asked)
        for place, (name, number, part) in enumerate(parts):
            if part.job in asked:  # looked at again: it may have begun or ended before the queue answered
                fares[place] = _in_queue(_fare(folder, name, number, part.job, now), part, queue)
    return [
        {"name": name, "task": number, "job": part.job, **fare}
        for (name, number, part), fare in zip(parts, fares, strict=True)
    ]


def _in_queue(fare: dict[str, Any], part: "_Part", queue: Queue) -> dict[str, Any]:
    """How a task fares by its file and by the queue."""
    state, why = fare["state"], fare["why"]
    if state not in _ASKED:
        return fare
    found, reason = queue.found.get((part.job, part.index), ("", ""))
    if state == _LATE and found in _NOT_KILLED:
        return fare | {"state": "running", "why": ""}
    if queue.problem:
        return fare | (
            {"why": f"{why}: waiting, or cancelled ({queue.problem})"} if state == "waiting" else {}
        )
    if found in WAITING:
        return fare | {
            "state": "waiting" if state in ("lost", _LATE) else state,
            "why": f"{why}; in the queue: {reason}",
        }
    why += f"; Slurm: {found}" if found else "; no longer in the queue"
    if found not in ACTIVE and state != "lost":
        state = "cancelled" if found in ("", "CANCELLED") else "failed"
    return fare | {"state": state, "why": why}


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A task as Slurm knows it."""

    job: str
    """Id of the job."""
    index: int
    """Its index in the array; 0 if it is none."""
    script: str
    """The job's script."""


def _latest(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, _Part]]:
    """Parts by task, by name of the job, of the last submission that had such a job."""
    found: dict[str, dict[int, _Part]] = {}
    latest: dict[str, int] = {}
    for record in records:
        if record["submission"] != latest.get(record["name"]):
            latest[record["name"]], found[record["name"]] = record["submission"], {}
        for task in record["tasks"]:
            part = _Part(job=record["job"], index=task - record["offset"], script=record["script"])
            found[record["name"]][task] = part
    last = records[-1]["submission"] if records else 0
    return {name: parts for name, parts in found.items() if name not in _LAST or latest[name] == last}


def _fare(folder: Path, name: str, number: int, job: str, now: float) -> dict[str, Any]:
    """How one task fares, by the file its script keeps."""
    file = folder / f"{name}.{number}.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        silent = now - file.stat().st_mtime
    except FileNotFoundError:
        record = {"job": None}
    except ValueError as error:
        raise DataError(f"{file}: damaged, not the state of a task ({error})") from error
    if record["job"] != job:
        return {"state": "waiting", "host": "", "restarts": 0, "log": "", "why": "not started"}
    lines = _latest_start(folder / record["log"])
    said = why_ended(lines)[:300]
    if record["state"] == "running":
        state, why = "running", ""
        if silent > _LATE_S:
            state = "lost" if silent > SILENT_S else _LATE
            why = f"no sign of life for {silent:.0f} s; it last said: {said}"
    elif record["state"] == "cancelled":
        state, why = "cancelled", f"cancelled while it ran: {said}"
    elif record["status"] == 0:
        state, why = "done", ""
    elif record["status"] == STOPPED or any(map(_QUEUED_AGAIN.search, lines)):
        state, why = "stopped", f"queued again: {said}"
    else:
        state, why = "failed", f"exit status {record['status']}: {said}"
    shown = {name: record[name] for name in ("host", "restarts")}
    return {"state": state, **shown, "log": str(folder / record["log"]), "why": why}


def _latest_start(log: Path) -> list[str]:
    """What the latest start of a task said, as far as the end of its log holds it."""
    if not log.is_file():
        return ["nothing (no log)"]
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(START_MARK)]
    return [line.strip() for line in lines[starts[-1] if starts else 0 :] if line.strip()]


def why_ended(lines: Sequence[str]) -> str:
    """The line of a log that says most of how a start ended.

    That is its last `error:`, else that it was stopped in order, else the first exception (others follow from it: other
    processes lose their peer, a launcher its children), else its last line.
    """
    errors = [line for line in lines if line.startswith("error: ")]
    stopped = [line for line in lines if line.startswith("stopped at ")]
    raised = [line for line in lines if _RAISED.match(line) and not _LAUNCHER.match(line)]
    return (errors[-1:] or stopped[-1:] or raised[:1] or lines[-1:] or ["nothing"])[0]


def format_status(status: Mapping[str, Any]) -> str:
    """The lines for a person: the product, a count by state for each job, and every task that is not simply done."""
    lines = [f"{status['path']}: {status['kind']}, {status['state']}"]
    for name, value in status["progress"].items():
        if isinstance(value, Mapping):
            lines += [f"  {name}:", *(f"    {key}: {one}" for key, one in value.items())]
        else:
            lines.append(f"  {name}: {value}")
    for job in dict.fromkeys(task["name"] for task in status["tasks"]):
        own = [task for task in status["tasks"] if task["name"] == job]
        counts = Counter(task["state"] for task in own)
        lines.append(f"job {job}: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
        waiting = Counter(task["why"] for task in own if task["state"] == "waiting")
        lines += [f"  {count} waiting: {why}" for why, count in waiting.items()]
        for task in own:
            if task["state"] in ("done", "waiting"):
                continue
            started = f" on {task['host']}, started {task['restarts'] + 1}x" if task["log"] else ""
            why = f", {task['why']}" if task["why"] else ""
            lines.append(f"  task {task['task']} ({task['job']}{started}): {task['state']}{why}")
            if task["why"] and task["log"]:
                lines.append(f"    log: {task['log']}")
    return "\n".join(lines)
