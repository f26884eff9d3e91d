"""How a store, a run or a grid fares: what is done, running, failed and why.

By files alone (`products`, `tasks`), so that it works on any machine that sees the folder; Slurm is asked about tasks
of which files cannot tell how they fare.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.cluster.products import grid_progress, is_written_here, kind_from, run_progress, store_progress
from shared.cluster.submit import jobs_folder, read_submitted
from shared.cluster.tasks import LAST, tasks_of
from shared.errors import DataError
from shared.grid_folders import cells_of, failure_of


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
    tasks = tasks_of(jobs_folder(target), submitted, time.time() if now is None else now)
    kind = kind_from(target, submitted)
    if not kind:
        raise DataError(f"{target}: neither a store (*.zarr) nor a run or grid, and no jobs of one")
    if kind == "store":
        done, progress = store_progress(target)
    else:
        done, progress = run_progress(target) if kind == "run" else grid_progress(target, tasks)
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
    return kind_from(target, read_submitted(jobs_folder(target)))


def _overall(done: bool, tasks: Sequence[Mapping[str, Any]]) -> str:
    """One word for all: a product that is there but did not pass its check has failed."""
    states = [task["state"] for task in tasks if not done or task["name"] in LAST]
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
