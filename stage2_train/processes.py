"""Joins the processes that a launcher started; refuses a launcher that started fewer than it was asked for.

A run whose processes do not find each other trains as many copies of itself into one folder, and one that was given a
single process instead of several is only slow: nothing else would say so.
"""

import os

import torch
from accelerate import Accelerator

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


def _lost_by_accelerate() -> bool:
    """Whether `accelerate launch` wanted several processes: only then does it set the address they would meet at."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
