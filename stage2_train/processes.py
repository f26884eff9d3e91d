"""Joins the processes that a launcher started, and what they agree on; refuses a launcher that started too few.

A run whose processes do not find each other trains as many copies of itself into one folder, and one that was given a
single process instead of several is only slow: nothing else would say so.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from shared.errors import DataError
from shared.gpu_build import require_usable_gpus
from shared.runlog import say

TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others. NCCL's own 10 minutes are less than reading all images of a data set from a
slow disk can take, or compiling a network."""

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
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
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


@contextmanager
def ended_together() -> Iterator[None]:
    """Leave the group of processes where all of them are through, or stop in order; else the launcher ends them."""
    try:
        yield
    except SystemExit:
        _leave_group()
        raise
    _leave_group()


def _leave_group() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def say_emulated(precision: str, device: torch.device) -> None:
    """Note a GPU that only imitates bfloat16, which is slower than float32 and takes as much memory."""
    if (
        precision == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        name = torch.cuda.get_device_name(device)
        say(f"note: {name} has no bfloat16 of its own and imitates it, slowly; --set precision=fp32 does not")


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
