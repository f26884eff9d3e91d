"""Which GPUs there are and how workers divide them, without loading torch."""

import itertools
import os
from collections.abc import Sequence

from shared.errors import DataError
from shared.gpu_build import ask_driver, gpus_of_driver
from stage1_priors.config import EngineConfig


def visible_gpus() -> list[str]:
    """Ids of the GPUs this process may use, as CUDA_VISIBLE_DEVICES would name them; none if the driver shows none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        ids = (part.strip() for part in named.split(","))
        return list(itertools.takewhile(lambda one: one not in ("", "-1"), ids))  # nor does CUDA look further
    listed = ask_driver("index")
    return [str(number) for number in range(len(gpus_of_driver()))] if listed is None else listed


def groups_of(gpus: Sequence[str], size: int) -> list[list[str]]:
    """The GPUs in groups of `size`, each for one worker at least; what is left over is nobody's."""
    return [list(gpus[first : first + size]) for first in range(0, len(gpus) - size + 1, size)]


def require_gpus(engine: EngineConfig, num_workers: int, gpus: Sequence[str]) -> None:
    """Refuse workers that the GPUs cannot hold.

    Args:
        engine: GPUs of a worker, and the share of each that it takes.
        num_workers: Workers at work at once.
        gpus: The GPUs there are; none: work on the CPU.

    Raises:
        DataError: Fewer GPUs than a worker needs, or more workers on a GPU than its memory is shared out to.
    """
    groups = groups_of(gpus, engine.gpus)
    if engine.gpus > 1 and not groups:
        there = f"{len(gpus)} ({', '.join(gpus)})" if gpus else "none"
        raise DataError(f"engine.gpus is {engine.gpus}, and of GPUs this process may use {there}")
    sharing = -(-num_workers // len(groups)) if groups else 1
    if engine.kind == "vllm" and sharing * engine.gpu_memory > 1 + 1e-9:
        raise DataError(
            f"--workers is {num_workers}, so that {sharing} share a GPU, and each takes engine.gpu_memory="
            f"{engine.gpu_memory:g} of it; {len(groups)} workers, or a lower engine.gpu_memory, fit"
        )
