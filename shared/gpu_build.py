"""Refuses a torch that was built for machines without GPUs where a process was given some."""

import os
import sys

from shared.errors import DataError


def require_usable_gpus(found: str = "") -> None:
    """Stop what would run on the CPU, and for weeks, though there are GPUs.

    Args:
        found: GPUs that the caller knows of; those of a batch job count in any case.

    Raises:
        DataError: There are some, and torch cannot use one.
    """
    granted = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS")
    if not granted and not found:
        return
    import torch

    # Asks the driver's library for numbers, not CUDA itself, which processes forked later could not use then.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if torch.cuda.is_available():
        return
    given = f"Slurm gave this job GPU {granted}" if granted else f"this machine has GPU {found}"
    raise DataError(
        f"{given}, and torch {torch.__version__} of {sys.prefix} can use none: an environment that was set up on a "
        "machine without GPUs holds CPU builds; make setup GPU=1 replaces them, see 'On GPUs' in the README"
        + ("" if granted else ". CUDA_VISIBLE_DEVICES= asks for the CPU")
    )
