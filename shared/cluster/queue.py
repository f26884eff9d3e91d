"""What Slurm's queue says of jobs, where there is a `squeue` to ask."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

PATIENCE_S = 30
"""Seconds to wait for an answer; squeue itself gives up on a controller that is down after about 20."""

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING", "SUSPENDED")
ACTIVE = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING")
"""States of Slurm in which a job is not at its end."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """An answer of the queue."""

    problem: str = ""
    """Why there is none; "" if there is."""
    found: Mapping[tuple[str, int], tuple[str, str]] = field(default_factory=dict)
    """State and reason, in Slurm's words, by job and index in its array (0 where it is none). Jobs that have ended
    leave the queue after some minutes, a cancelled part of an array that waits at once."""


def ask_queue(scripts: Mapping[str, str]) -> Queue:
    """Ask for some jobs.

    Args:
        scripts: Script by id of the job. A job of that id with another script is another cluster's.
    """
    if shutil.which("squeue") is None:
        return Queue(problem="no squeue here to ask")
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%F|%K|%T|%r|%o"]
    try:
        done = subprocess.run(
            [*command, f"--jobs={','.join(scripts)}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return Queue(problem=f"squeue: no answer within {PATIENCE_S} s")
    # "Invalid job id" is what it says of a single job that it does not know.
    if done.returncode and "Invalid job id" not in done.stderr:
        said = done.stderr.strip().splitlines()
        return Queue(problem=f"squeue: {said[-1] if said else f'exit status {done.returncode}'}")
    found = {}
    for line in done.stdout.splitlines():
        fields = line.split("|", maxsplit=4)
        if len(fields) < 5:
            continue  # what a site's own squeue says besides
        job, index, state, reason, script = fields
        own = scripts.get(job)
        if own is not None and (script == own or script.startswith(f"{own} ")):
            found[job, int(index) if index.isdecimal() else 0] = state, reason
    return Queue(found=found)
