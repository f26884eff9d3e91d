"""Several stage 1 workers on one machine: one process per GPU, each a `priors run` of its own.

The parent plans nothing and writes nothing. It starts the workers, reads how far the store is from the store's own
marks, and waits. A worker is an ordinary `l2l priors run ... --worker i --num-workers n`, so a batch system can start
the same ones elsewhere. What a worker says goes to a file of its own beside the stores.

One process per device, never an engine's in-process data parallelism: those run in lock-step and end together.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DataError
from shared.runlog import ProgressBar, say
from shared.stopping import STOP_SIGNALS, STOPPED, stop_flag
from shared.store.layout import read_header
from shared.store.marks import read_mark
from stage1_priors.config import ImportConfig, PriorsConfig
from stage1_priors.devices import visible_gpus
from stage1_priors.failures import failed_shards, told_failures
from stage1_priors.job import StoreJob, job_of, pending_of, require_engine

STAGGER_S = 2.0
"""Pause between starts: models are read from one disk, and engines choose their ports one after the other."""

POLL_S = 0.5
"""Pause between looks at the workers."""

INTERRUPT_S = 10.0
"""Time that workers have to end by themselves after Ctrl-C."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

FIRST_PORT, PORTS, NUM_RANGES = 30_000, 16, 170
"""Ranges of ports, one a worker, in which its engine looks for free ones: above those of rendezvous, below those that
the kernel hands out to outgoing connections (from 32768 on)."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process to start."""

    index: int
    """Its number, from 0."""
    environment: dict[str, str]
    """Variables that differ from the parent's."""
    log: Path
    """File for what it says."""


def num_workers_of(wanted: str) -> int:
    """`auto` (one per GPU, one without any) or a number.

    Raises:
        DataError: Anything else.
    """
    if wanted == "auto":
        return max(1, len(visible_gpus()))
    if not wanted.isdecimal() or int(wanted) < 1:
        raise DataError(f"--workers is {wanted!r}, expected auto or a number of at least 1")
    return int(wanted)


def plan_workers(
    num_workers: int,
    gpus: Sequence[str],
    cores: int,
    log_folder: Path,
    stem: str,
    inherited: Mapping[str, str],
) -> list[Worker]:
    """The processes to start: each with its own device, if there are any, and threads for its share of the cores.

    Args:
        num_workers: How many.
        gpus: Ids of the GPUs; with fewer GPUs than workers some share one.
        cores: Cores that this process may use; the workers divide them.
        log_folder: Where their logs go.
        stem: First part of a log's name.
        inherited: The environment they inherit; a number of threads that is set there stays.
    """
    workers = []
    for index in range(num_workers):
        environment = {}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        if num_workers > 1:
            share = (index + 1) * cores // num_workers - index * cores // num_workers
            environment["OMP_NUM_THREADS"] = str(max(1, share))
            # Only read with engine.one_process=false: vLLM would bind the threads of all workers to the same CPUs.
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        for name in environment.keys() & inherited.keys() - {"CUDA_VISIBLE_DEVICES"}:
            del environment[name]
        log = log_folder / f"{stem}.worker-{index}.log"
        workers.append(Worker(index=index, environment=environment, log=log))
    return workers


def separate_from_other_workers(worker: int, fingerprint: str, environment: MutableMapping[str, str]) -> None:
    """Give a worker ports and compile caches of its own, below the folders that the environment names.

    Several arrays of jobs may meet on a node: the ids of an array's tasks follow its own in Slurm, so that its id and
    the worker's number tell all of them apart. Caches outlive a job: they are told apart by store, and a later job of
    the same store finds them warm.

    Args:
        worker: Its number.
        fingerprint: The store's.
        environment: Changed in place.
    """
    job = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID") or "0"
    environment["VLLM_PORT"] = str(FIRST_PORT + PORTS * ((int(job) + worker) % NUM_RANGES))
    home = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = Path(environment.get("VLLM_CACHE_ROOT") or home / "vllm") / f"{fingerprint}-{worker}"
    environment["VLLM_CACHE_ROOT"] = str(own)
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(own / "inductor")
    environment["TRITON_CACHE_DIR"] = str(own / "triton")


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
        num_workers: Processes.
        arguments: Arguments of `priors run` that give the same recipe: its name and `--set` options.
        retry_failed: Ask for failed rows of finished shards instead (`run_priors`).
        quiet: No progress on standard error.

    Raises:
        DataError: An engine that is not installed, too little memory for so many, or a worker failed; names it, its
            last line and its log.
        SystemExit: Status `STOPPED`, after a signal with shards left to do.
    """
    require_engine(config)
    job = job_of(config)
    if not (failed_shards(job.path) if retry_failed else pending_of(job)):
        _say_failures(job, quiet)
        return job.path
    if retry_failed:
        arguments = [*arguments, "--retry-failed"]
    gpus = visible_gpus()
    require_memory(config, num_workers, bool(gpus))
    log_folder = Path(config.cache_root) / "logs"
    log_folder.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    workers = plan_workers(num_workers, gpus, cores, log_folder, job.path.stem, os.environ)
    processes: list[subprocess.Popen[bytes]] = []
    with stop_flag() as told_to_stop:
        try:
            for worker in workers:
                if processes:
                    time.sleep(STAGGER_S)
                if told_to_stop():
                    break
                processes.append(_start(worker, num_workers, arguments))
            _watch(job, processes, told_to_stop, quiet)
        except KeyboardInterrupt:
            _wait_a_little(processes)
            raise
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
            for process in processes:
                process.wait()
    in_order = (0, STOPPED, *(-number for number in STOP_SIGNALS)) if told_to_stop() else (0,)
    failed = [
        (worker, process)
        for worker, process in zip(workers, processes, strict=False)
        if process.returncode not in in_order
    ]
    if failed:
        worker, process = failed[0]
        raise DataError(
            f"{len(failed)} of {num_workers} workers failed; worker {worker.index} ended with status "
            f"{process.returncode}: {_last_line(worker.log)} (its log: {worker.log}). Finished shards are kept; "
            "the same command goes on"
        )
    left = len(pending_of(job)) if told_to_stop() else 0
    if left or any(process.returncode == STOPPED for process in processes):
        say(f"stopped at a signal: {left} shards to do; the same command goes on", quiet)
        raise SystemExit(STOPPED)
    _say_failures(job, quiet)
    return job.path


def _say_failures(job: StoreJob, quiet: bool) -> None:
    """What the workers' logs say, where somebody looks."""
    if failed := "" if quiet else told_failures(job.path):
        say(f"{job.path}: failed: {failed}", quiet)


def require_memory(config: PriorsConfig | ImportConfig, num_workers: int, on_gpus: bool) -> None:
    """Refuse workers whose caches alone take more than the machine has left: the kernel would kill one without a word.

    Raises:
        DataError: Says what they take and what there is.
    """
    if isinstance(config, ImportConfig) or config.engine.kind != "vllm":
        return
    engine = config.engine
    each = (engine.image_cache_gb if engine.caching else 0) + (0 if on_gpus else engine.kv_cache_gb)
    free = _available_gb()
    if free is not None and num_workers * each > free:
        raise DataError(
            f"{f'{num_workers} workers take' if num_workers > 1 else 'this run takes'} {num_workers * each:.3g} GiB "
            f"for caches (engine.image_cache_gb{'' if on_gpus else ', engine.kv_cache_gb'}), and this machine has "
            f"{free:.3g} GiB left"
        )


def _available_gb() -> float | None:
    """Memory that can be had without swapping, GiB (Linux); None where nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20
    except (OSError, ValueError, StopIteration):
        return None


def _start(worker: Worker, num_workers: int, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    own = ["--worker", str(worker.index), "--num-workers", str(num_workers)]
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
    processes: "Sequence[subprocess.Popen[bytes]]",
    told_to_stop: Callable[[], bool],
    quiet: bool,
) -> None:
    """Show the store's progress until every process has ended; tell them once when this one is told to stop."""
    passed_on = False
    rows = [job.plan.rows_of(shard) for shard in range(job.plan.num_shards)]
    seen: set[int] = set(_done(job, range(len(rows))))
    before = sum(rows[shard] for shard in seen)
    with ProgressBar(
        sum(rows), f"priors, {len(processes)} workers", "pair", initial=before, quiet=quiet
    ) as bar:
        while True:
            if told_to_stop() and not passed_on:
                passed_on = True
                for process in processes:
                    process.terminate()
            ended = all(process.poll() is not None for process in processes)
            for shard in _done(job, set(range(len(rows))) - seen):
                seen.add(shard)
                bar.update(rows[shard])
            bar.update(0)
            if ended:
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


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
