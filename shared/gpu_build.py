"""Which GPUs the driver has, and whether the torch of this environment can use them.

Refuses a torch that was built for machines without GPUs where a process was given some, and a driver that is too old
for what torch was built for.
"""

import os
import subprocess
import sys
from pathlib import Path

from shared.errors import DataError

TIMEOUT_S = 15.0
"""A driver that is at fault lets nvidia-smi wait for ever."""

DRIVER_FILES = Path("/proc/driver/nvidia/gpus")
"""Where the driver keeps a folder for each GPU; containers without nvidia-smi have it, too."""

OLDEST_DRIVERS = {12: 525, 13: 580}
"""Number of the oldest driver that runs what was built for a CUDA, by the CUDA's whole number (NVIDIA, "CUDA
compatibility")."""


def ask_driver(what: str) -> list[str] | None:
    """One line for each GPU from `nvidia-smi --query-gpu`; None if it is not there, fails, or does not answer."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def gpus_of_driver() -> list[str]:
    """Names of the GPUs whose folders the driver shows, in the order of their numbers; none without a driver."""
    names = []
    for folder in sorted(DRIVER_FILES.glob("*")):
        try:
            lines = (folder / "information").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            lines = []
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
        names.append(models[0] if models else "NVIDIA GPU")
    return names


def too_old(driver: str | None, cuda: str | None) -> str:
    """Why a driver cannot run what was built for a CUDA, in words; "" if it can, or if nothing is known.

    Args:
        driver: Its version, such as 535.183.01.
        cuda: That of torch, such as 13.0; None for a torch without.
    """
    if driver is None or cuda is None:
        return ""
    number, built = driver.partition(".")[0], cuda.partition(".")[0]
    oldest = OLDEST_DRIVERS.get(int(built)) if built.isdecimal() else None
    if oldest is None or not number.isdecimal() or int(number) >= oldest:
        return ""
    return (
        f"the NVIDIA driver is {driver}, and CUDA {cuda}, which torch was built for, needs {oldest} or later"
    )


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

    # Asks the driver's library for numbers, not CUDA itself, which processes forked later could not use then. A driver
    # that is too old has numbers as well.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if torch.cuda.is_available():
        drivers = ask_driver("driver_version")
        fault = too_old(drivers[0] if drivers else None, torch.version.cuda)
        if fault:
            raise DataError(f"no GPU can be used: {fault}. CUDA_VISIBLE_DEVICES= asks for the CPU")
        return
    given = f"Slurm gave this job GPU {granted}" if granted else f"this machine has GPU {found}"
    raise DataError(
        f"{given}, and torch {torch.__version__} of {sys.prefix} can use none: an environment that was set up on a "
        "machine without GPUs holds CPU builds; make setup GPU=1 replaces them, see 'On GPUs' in the README"
        + ("" if granted else ". CUDA_VISIBLE_DEVICES= asks for the CPU")
    )
