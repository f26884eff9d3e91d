"""Several stage 1 workers on one machine: one process per GPU, each a `priors run` of its own.

The parent writes nothing. It deals out the shards that are missing, starts the workers, reads how far the store is from
the store's own marks, and waits. A worker is an ordinary `l2l priors run ... --worker i --num-workers n --shards LIST`,
so a batch system can start the same ones elsewhere. What a worker says goes to a file of its own beside the stores.

One process per device, never an engine's in-process data parallelism: those run in lock-step and end together.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.cluster.tasks import why_ended
from shared.errors import DataError
from shared.ranges import as_ranges
from shared.runlog import ProgressBar, say
from shared.stopping import STOP_SIGNALS, STOPPED, stop_flag
from shared.store.layout import read_header
from shared.store.marks import read_mark
from stage1_priors.config import ImportConfig, PriorsConfig
from stage1_priors.devices import require_gpus, visible_gpus
from stage1_priors.failures import shards_to_retry, told_failures
from stage1_priors.job import Job, StoreJob, job_of, pending_of, require_engine
from stage1_priors.memory_left import require_memory
from stage1_priors.preflight import replaced_images, require_images
from stage1_priors.worker_env import Worker, plan_workers

STAGGER_S = 2.0
"""Pause between starts: models are read from one disk, and engines choose their ports one after the other."""

POLL_S = 0.5
"""Pause between looks at the workers."""

INTERRUPT_S = 10.0
"""Time that workers have to end by themselves after Ctrl-C."""

_STOPPED = (STOPPED, *(-number for number in STOP_SIGNALS))
"""Statuses of a worker that was told to stop."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True, kw_only=True)
class Started:
    """A worker and its process."""

    worker: Worker
    """What it was started with."""
    process: "subprocess.Popen[bytes]"
    """Its process."""
    log_start: int
    """Bytes that its log held before."""

    def ending(self) -> str:
        """How it ended, and the line that says most of why."""
        status, log = self.process.returncode, self.worker.log
        lines = log.read_bytes()[self.log_start :].decode(errors="replace").splitlines()
        said = why_ended([line.strip() for line in lines if line.strip()])
        killed = (
            " (killed; the kernel kills whoever takes too much memory)" if status == -signal.SIGKILL else ""
        )
        return f"worker {self.worker.index} ended with status {status}{killed}: {said} (its log: {log})"


def run_workers(
    config: PriorsConfig | ImportConfig,
    num_workers: int,
    arguments: Sequence[str],
    *,
    retry_failed: bool = False,
    quiet: bool = False,
) -> Path:
    """Fill a store with several processes; returns its path once every worker has ended well.

    A worker that fails does not stop the others: whole shards are theirs alone, and what they finish stays. All of them
    end with this process, whatever ends it; else the next one would find their GPUs taken. SIGTERM and SIGUSR1 are
    passed on, and waited for: each worker writes the shard that it can complete.

    Args:
        config: The recipe.
        num_workers: Processes; no more than there are shards to write.
        arguments: Arguments of `priors run` that give the same recipe: its name and `--set` options.
        retry_failed: Ask for failed rows of finished shards instead (`run_priors`).
        quiet: No progress on standard error.

    Raises:
        DataError: An engine that is not installed, too few GPUs or too little memory for so many, too many lost images,
            failed rows asked for of no store, or a worker failed; names it, its last line and its log.
        SystemExit: Status `STOPPED`, after a signal with shards left to do.
    """
    require_engine(config)
    job = job_of(config, quiet=quiet)
    for note in replaced_images(job):
        say(f"note: {note}", quiet)
    if not (pending := shards_to_retry(job) if retry_failed else pending_of(job)):
        _say_failures(job, quiet)
        return job.path
    if retry_failed:
        arguments = [*arguments, "--retry-failed"]
    else:
        for note in require_images(job):
            say(f"note: {note}", quiet)
    num_workers = min(num_workers, len(pending))
    gpus, gpus_each = visible_gpus(), 1
    if isinstance(config, PriorsConfig):
        gpus_each = config.engine.gpus
        require_gpus(config.engine, num_workers, gpus)
    require_memory(config, num_workers, bool(gpus), job.weights_gb if isinstance(job, Job) else 0)
    log_folder = Path(config.cache_root) / "logs"
    log_folder.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    workers = plan_workers(num_workers, gpus, gpus_each, cores, log_folder, job.path.stem, os.environ)
    started: list[Started] = []
    with stop_flag() as told_to_stop:
        try:
            for worker in workers:
                if started:
                    time.sleep(STAGGER_S)
                if told_to_stop():
                    break
                log_start = worker.log.stat().st_size if worker.log.exists() else 0
                process = _start(worker, num_workers, arguments, pending)
                started.append(Started(worker=worker, process=process, log_start=log_start))
            _watch(job, started, told_to_stop, quiet)
        except KeyboardInterrupt:
            _wait_a_little([one.process for one in started])
            raise
        finally:
            for one in started:
                if one.process.poll() is None:
                    one.process.kill()
            for one in started:
                one.process.wait()
    in_order = (0, *_STOPPED) if told_to_stop() else (0,)
    if failed := [one for one in started if one.process.returncode not in in_order]:
        raise DataError(
            f"{len(failed)} of {num_workers} workers failed; {failed[0].ending()}. Finished shards are kept; the same "
            "command goes on"
        )
    left = len(pending_of(job)) if told_to_stop() else 0
    if left or any(one.process.returncode == STOPPED for one in started):
        say(f"stopped at a signal: {left} shards to do; the same command goes on", quiet)
        raise SystemExit(STOPPED)
    _say_failures(job, quiet)
    return job.path


def _say_failures(job: StoreJob, quiet: bool) -> None:
    """What the workers' logs say, where somebody looks."""
    if failed := "" if quiet else told_failures(job.path):
        say(f"{job.path}: failed: {failed}", quiet)


def _start(
    worker: Worker, num_workers: int, arguments: Sequence[str], dealt: Sequence[int]
) -> "subprocess.Popen[bytes]":
    own = ["--worker", str(worker.index), "--num-workers", str(num_workers), "--shards", as_ranges(dealt)]
    with worker.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cli", "priors", "run", *arguments, *own],
            env={**os.environ, **worker.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """In a new process: end when the one that started it is gone, which by then waits for nobody (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(
    job: StoreJob,
    started: Sequence[Started],
    told_to_stop: Callable[[], bool],
    quiet: bool,
) -> None:
    """Show the store's progress until every process has ended; tell them once when this one is told to stop.

    One that fails is reported at once, while the others go on.
    """
    passed_on, running = False, list(started)
    rows = [job.plan.rows_of(shard) for shard in range(job.plan.num_shards)]
    seen: set[int] = set(_done(job, range(len(rows))))
    before = sum(rows[shard] for shard in seen)
    with ProgressBar(
        sum(rows), f"priors, {len(started)} workers", "pair", initial=before, quiet=quiet
    ) as bar:
        while True:
            if told_to_stop() and not passed_on:
                passed_on = True
                for one in started:
                    one.process.terminate()
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                if one.process.returncode not in (0, *_STOPPED):
                    say(one.ending(), quiet)
            for shard in _done(job, set(range(len(rows))) - seen):
                seen.add(shard)
                bar.update(rows[shard])
            bar.update(0)
            if not running:
                return
            time.sleep(POLL_S)


def _wait_a_little(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """After Ctrl-C, which a terminal sends to all: let them put back their notes of what they had begun."""
    end = time.monotonic() + INTERRUPT_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))


def _done(job: StoreJob, shards: "range | set[int]") -> list[int]:
    """Which of these shards are marked as written."""
    if not job.path.exists():
        return []
    header = read_header(job.path)
    done = []
    for shard in shards:
        try:
            read_mark(header, shard)
        except (DataError, FileNotFoundError):
            continue
        done.append(shard)
    return done
