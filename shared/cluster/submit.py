"""Hands jobs to Slurm, or runs the same work here where there is none.

A folder of jobs holds, for each job, `<name>.sh`, its script, which can be read and submitted again by hand (an array
that is wider than the site allows with `--array` and its offset, as the script says when they are missing);
`<name>.<task>.json`, how a task fares, written by the script; and `<name>.<job>.log`, what it said. `submitted.jsonl`
has one line a job: its id, its tasks, which submission it was part of, and the offset of its array (a task's number
less its index).
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.cluster.queue import ACTIVE, WAITING, ask_queue
from shared.cluster.script import ClusterJob, array_chunks, array_value, script_of
from shared.cluster.site import SiteConfig
from shared.errors import DataError
from shared.locks import locked

SUBMITTED_FILE = "submitted.jsonl"
"""Name of the list of submitted jobs in a folder of jobs."""

PATIENCE_S = 600.0
"""Seconds that another submission of the same work is waited for; a busy controller takes some for each job."""

DEFAULT_ARRAY_SIZE = 1001
"""`MaxArraySize` of a Slurm that was not told otherwise."""

_JOB_ID = re.compile(r"^[ \t]*(\d+)(?:;\S+)?[ \t\r]*$", re.MULTILINE)
"""A line of sbatch with a job's id, or its id and its cluster."""

_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")
"""Of Slurm's variables those that say which cluster; the others describe the job that submits, if it is one."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done for one store, run or grid."""

    target: Path
    """The store, run or grid folder."""
    folder: Path
    """Where scripts, logs and task files go."""
    jobs: tuple[ClusterJob, ...]
    """The jobs, in the order of their submission; empty: all is done already."""
    here: tuple[tuple[str, ...], ...]
    """The same work on one machine without Slurm: arguments of Python, one process after the other."""
    notes: tuple[str, ...] = ()
    """What whoever submits should know before."""
    readers: int = 0
    """Processes beside each process of a training that read for it."""

    def notes_at(self, site: SiteConfig) -> tuple[str, ...]:
        """`notes`, and whether the site's jobs have too few cores for the readers."""
        if self.readers < site.cpus_per_process:
            return self.notes
        return (
            *self.notes,
            f"cpus_per_process is {site.cpus_per_process}, and a process of this training has {self.readers} readers "
            f"(runtime.workers): let cpus_per_process be {self.readers + 1} in cluster.toml if training waits for them",
        )


def jobs_folder(target: Path) -> Path:
    """Where the jobs of a store (beside it, `<name>.jobs`) or of a run or grid (in it, `jobs`) keep their files."""
    return target.with_suffix(".jobs") if target.suffix == ".zarr" else target / "jobs"


def has_slurm() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def scripts(work: Work, site: SiteConfig) -> dict[Path, str]:
    """The script of every job by its file; nothing is written."""
    folder, site = work.folder.resolve(), with_array_size(site)
    return {
        folder / f"{job.name}.sh": script_of(job, site, folder, Path.cwd(), sys.executable)
        for job in work.jobs
    }


def with_array_size(site: SiteConfig) -> SiteConfig:
    """The site with `max_array_size` filled in: as its file says, else as Slurm does, else Slurm's own default."""
    if site.max_array_size:
        return site
    size = DEFAULT_ARRAY_SIZE
    if shutil.which("scontrol") is not None:
        said = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, check=False
        ).stdout
        found = re.search(r"^MaxArraySize\s*=\s*([1-9]\d*)", said, re.MULTILINE)
        size = int(found[1]) if found else size
    return replace(site, max_array_size=size)


def sbatch_commands(job: ClusterJob, site: SiteConfig, file: Path, before: Sequence[str]) -> list[list[str]]:
    """The calls of sbatch that submit a job: one, or one per part of a wide array.

    Args:
        job: The job.
        site: The site, `max_array_size` filled in.
        file: Its script.
        before: Ids of the jobs submitted before it.
    """
    options = ["sbatch", "--parsable"]
    if awaited := [*job.after, *(before if job.after_others else ())]:
        options += [f"--dependency=afterok:{':'.join(awaited)}", "--kill-on-invalid-dep=yes"]
    if not job.tasks:
        return [[*options, str(file)]]
    return [
        [*options, f"--array={array_value(indices, site)}", str(file), *([str(offset)] if offset else [])]
        for offset, indices in array_chunks(job.tasks, site.max_array_size)
    ]


def submit(work: Work, site: SiteConfig) -> list[dict[str, Any]]:
    """Write the scripts and submit them.

    Returns:
        One object a job: `name`, `job` (its id), `tasks`, `script`.

    Raises:
        DataError: Jobs of an earlier submission have not ended, or another one is still under way; or sbatch refuses a
            job, and those before it stay submitted and are named.
    """
    site = with_array_size(site)
    work.folder.mkdir(parents=True, exist_ok=True)
    with locked(work.folder / SUBMITTED_FILE, PATIENCE_S):  # so that the later finds the jobs of the earlier
        return _submit(work, site)


def _submit(work: Work, site: SiteConfig) -> list[dict[str, Any]]:
    """`submit`, while nobody else submits the same work."""
    if jobs := [f"job {job} ({', '.join(states)})" for job, states in unended(work.folder).items()]:
        raise DataError(
            f"{work.target}: {', '.join(jobs)} of an earlier submission would do the same work; wait for what has not "
            "ended, or scancel it"
        )
    submitted: list[dict[str, Any]] = []
    submission = time.time_ns()
    for job, (file, text) in zip(work.jobs, scripts(work, site).items(), strict=True):
        file.write_text(text, encoding="utf-8")
        parts = _parts(job, site)
        commands = sbatch_commands(job, site, file, [one["job"] for one in submitted])
        for (offset, tasks), command in zip(parts, commands, strict=True):
            record = {
                "name": job.name,
                "job": _sbatch(command, submitted),
                "tasks": tasks,
                "script": str(file),
            }
            with (work.folder / SUBMITTED_FILE).open("a", encoding="utf-8") as log:
                log.write(json.dumps({**record, "offset": offset, "submission": submission}) + "\n")
            submitted.append(record)
    return submitted


def read_submitted(folder: Path) -> list[dict[str, Any]]:
    """The jobs of all submissions, in order: what `submit` returned, with `offset` and `submission`.

    Raises:
        DataError: A damaged line; names it.
    """
    file = folder / SUBMITTED_FILE
    if not file.is_file():
        return []
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            missing = {"name", "job", "tasks", "script", "offset", "submission"} - record.keys()
        except (ValueError, AttributeError) as error:
            raise DataError(f"{file}, line {number}: not a submitted job ({error})") from error
        if missing:
            raise DataError(
                f"{file}, line {number}: not a submitted job (lacks {', '.join(sorted(missing))})"
            )
        records.append(record)
    return records


def unended(folder: Path) -> dict[str, list[str]]:
    """Submitted jobs that Slurm still knows as waiting or running: id -> states of its tasks; none without `squeue`.

    Raises:
        DataError: It does not answer: the same work might be submitted twice.
    """
    scripts_of_jobs = {record["job"]: record["script"] for record in read_submitted(folder)}
    if not scripts_of_jobs:
        return {}
    if shutil.which("squeue") is None:
        return {}
    queue = ask_queue(scripts_of_jobs)
    if queue.problem:
        raise DataError(
            f"{folder}: {queue.problem}; so it is not known whether jobs of an earlier submission have ended. Try again"
        )
    states: dict[str, set[str]] = {}
    for (job, _), (state, _) in queue.found.items():
        if state in (*WAITING, *ACTIVE):
            states.setdefault(job, set()).add(state)
    return {job: sorted(states[job]) for job in scripts_of_jobs if job in states}


def _parts(job: ClusterJob, site: SiteConfig) -> list[tuple[int, list[int]]]:
    """Offset and tasks of each array of a job."""
    if not job.tasks:
        return [(0, [0])]
    size = site.max_array_size
    return [
        (offset, [task for task in job.tasks if offset <= task < offset + size])
        for offset, _ in array_chunks(job.tasks, size)
    ]


def _sbatch(command: list[str], before: Sequence[dict[str, Any]]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    answers = _JOB_ID.findall(done.stdout)  # a site's own sbatch may say more around it
    if done.returncode or not answers:
        said = [line.removeprefix("sbatch: error: ") for line in (done.stderr or done.stdout).splitlines()]
        reason = "; ".join(line.strip() for line in said if line.strip()) or f"exit status {done.returncode}"
        named = ", ".join(one["job"] for one in before)
        raise DataError(
            f"{shlex.join(command)}: {reason}" + (f" (jobs submitted before it: {named})" if named else "")
        )
    return answers[-1]


def _environment() -> dict[str, str]:
    """What a job takes over from here.

    A job that submits another one would hand on its count of restarts, its memory and its binding to cores, which the
    script and srun would take for the other's.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name in _KEPT or "SLURM_JOB_ID" not in os.environ
    }


def run_here(work: Work) -> None:
    """Do the work on this machine, one process after the other.

    Raises:
        SystemExit: With the exit status of the first process that fails.
    """
    for arguments in work.here:
        status = subprocess.run([sys.executable, *arguments], check=False).returncode
        if status:
            raise SystemExit(status if status > 0 else 128 - status)
