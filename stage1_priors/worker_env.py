"""What each of several workers is given: GPUs, cores, ports, compile caches and a log of its own."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DataError
from stage1_priors.devices import groups_of, visible_gpus

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


def num_workers_of(wanted: str, gpus_each: int) -> int:
    """`auto` or a number.

    Args:
        wanted: What the user said. `auto` is one per GPU, or per `gpus_each` of them, and one without any.
        gpus_each: GPUs of a worker.

    Raises:
        DataError: Anything else.
    """
    if wanted == "auto":
        return max(1, len(visible_gpus()) // gpus_each)
    if not wanted.isdecimal() or int(wanted) < 1:
        raise DataError(f"--workers is {wanted!r}, expected auto or a number of at least 1")
    return int(wanted)


def plan_workers(
    num_workers: int,
    gpus: Sequence[str],
    gpus_each: int,
    cores: int,
    log_folder: Path,
    stem: str,
    inherited: Mapping[str, str],
) -> list[Worker]:
    """The processes to start: each with its own devices, if there are any, and threads for its share of the cores.

    Args:
        num_workers: How many.
        gpus: Ids of the GPUs; with too few of them for all workers some share theirs.
        gpus_each: GPUs of a worker.
        cores: Cores that this process may use; the workers divide them.
        log_folder: Where their logs go.
        stem: First part of a log's name.
        inherited: The environment they inherit; a number of threads that is set there stays.
    """
    workers, groups = [], groups_of(gpus, gpus_each)
    for index in range(num_workers):
        environment = {}
        if groups:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(groups[index % len(groups)])
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


def separate_from_other_workers(worker: int, graph: str, environment: MutableMapping[str, str]) -> None:
    """Give a worker ports and compile caches of its own, below the folders that the environment names.

    Several arrays of jobs may meet on a node: the ids of an array's tasks follow its own in Slurm, so that its id and
    the worker's number tell all of them apart. Caches outlive a job: they are told apart by what is compiled, and a
    later job of the same model finds them warm, whatever its data.

    Args:
        worker: Its number.
        graph: Hash of what the compiled model depends on (`identity.graph_fingerprint`).
        environment: Changed in place.
    """
    job = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID") or "0"
    environment["VLLM_PORT"] = str(FIRST_PORT + PORTS * ((int(job) + worker) % NUM_RANGES))
    home = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = Path(environment.get("VLLM_CACHE_ROOT") or home / "vllm") / f"{graph}-{worker}"
    environment["VLLM_CACHE_ROOT"] = str(own)
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(own / "inductor")
    environment["TRITON_CACHE_DIR"] = str(own / "triton")
