"""How each task of a store's, run's or grid's batch jobs fares, by the file its script keeps, its log and the queue.

A task whose file nobody has touched for `SILENT_S` seconds is lost: it was killed, or its node died. A submitted task
without a file of its own has not started: it waits in the queue, or was dropped from it. Files cannot tell which, nor
whether a lost or stopped task will start again; Slurm is asked about those where it can be, and about tasks that have
been silent for a shorter time.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.cluster.queue import ACTIVE, WAITING, Queue, ask_queue
from shared.cluster.script import BEAT_S, START_MARK
from shared.errors import DataError
from shared.stopping import STOPPED

SILENT_S = 6 * BEAT_S
"""A task that lives touches its file several times within this."""

LAST = ("verify", "eval")
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


def tasks_of(folder: Path, submitted: Sequence[Mapping[str, Any]], now: float) -> list[dict[str, Any]]:
    """The tasks of the latest submission of each job, in order.

    Args:
        folder: The folder of the jobs.
        submitted: The jobs (`submit.read_submitted`).
        now: Seconds since the epoch.

    Returns:
        Of each `name`, `task`, `job`, `state` (`done`, `running`, `waiting`, `stopped`, `lost`, `failed` or
        `cancelled`), `host`, `restarts`, `log` and `why`.

    Raises:
        DataError: A damaged file of a task.
    """
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
    return {name: parts for name, parts in found.items() if name not in LAST or latest[name] == last}


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
