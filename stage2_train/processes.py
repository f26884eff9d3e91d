"""Joins the processes that a launcher started, and what they agree on; refuses a launcher that started too few.

A run whose processes do not find each other trains as many copies of itself into one folder, and one that was given a
single process instead of several is only slow: nothing else would say so.
"""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.errors import DataError
from shared.gpu_build import require_usable_gpus

_REMEDY = "start with torchrun --nproc_per_node N cli.py ..."


def start_accelerator() -> Accelerator:
    """Processes and device, a GPU where there is one.

    Raises:
        DataError: Fewer processes than the launcher was asked for, or a batch job with GPUs that torch cannot use.
    """
    wanted = os.environ.get("WORLD_SIZE")
    if wanted is None and _lost_by_accelerate():
        raise DataError(
            "accelerate launch was asked for several processes and started this one alone, as it does with --cpu: "
            + _REMEDY
        )
    missing = [
        name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if wanted not in (None, "1") and missing:
        raise DataError(f"WORLD_SIZE is {wanted} and {missing[0]} is not set: {_REMEDY}")
    require_usable_gpus()
    # Precision is the recipe's: a launcher's own, left to itself, would bring a scaler of gradients.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    if accelerator.num_processes != int(wanted or 1):
        raise DataError(f"{accelerator.num_processes} process(es) run, WORLD_SIZE is {wanted}: {_REMEDY}")
    return accelerator


def require_single_process(command: str) -> None:
    """Refuse to be one of several processes that a launcher started: each would do, and write, all of the work.

    Args:
        command: What does its work alone, as the user calls it.

    Raises:
        DataError: The launcher was asked for several processes.
    """
    wanted = os.environ.get("WORLD_SIZE", "1")
    if wanted != "1":
        raise DataError(
            f"{command} is the work of one process, and WORLD_SIZE is {wanted}: start it without torchrun"
        )


def _lost_by_accelerate() -> bool:
    """Whether `accelerate launch` wanted several processes: only then does it set the address they would meet at."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ


def on_any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether one of the processes says so; the same on all of them."""
    said = torch.tensor(float(flag), device=accelerator.device)
    return float(accelerator.reduce(said, reduction="sum")) > 0


def mean_over_processes(accelerator: Accelerator, metrics: dict[str, Tensor]) -> dict[str, float]:
    """Means of scalars over all processes, in one reduction; every process must hold the same names."""
    names = sorted(metrics)
    if not names:
        return {}
    values = torch.stack([metrics[name].float().to(accelerator.device) for name in names])
    return dict(zip(names, accelerator.reduce(values, reduction="mean").tolist(), strict=True))


def require_same_step(accelerator: Accelerator, out: Path, step: int) -> None:
    """Refuse a start whose processes have found different checkpoints: they would train different networks.

    Raises:
        DataError: On every process.
    """
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise DataError(
            f"{out}: the processes go on from different checkpoints (steps {', '.join(map(str, steps))}): the folder "
            "must lie on a disk that all nodes share, and each must see its newest files"
        )
