"""GPUs that are there and that torch cannot use are told; a machine without any is none of its business."""

import pytest
import torch

from shared import gpu_build
from shared.errors import DataError
from shared.gpu_build import require_usable_gpus, too_old


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS"])
def test_those_of_a_job_count_whatever_the_caller_knows(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(name, "0,1")
    with pytest.raises(
        DataError,
        match="Slurm gave this job GPU 0,1, and torch .* can use none: .* make setup GPU=1 .*'On GPUs'",
    ):
        require_usable_gpus()


def test_those_that_the_caller_found_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_usable_gpus()
    with pytest.raises(DataError, match="this machine has GPU 3, .* CUDA_VISIBLE_DEVICES= asks for the CPU"):
        require_usable_gpus("3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_usable_gpus("3")


@pytest.mark.parametrize(
    ("driver", "cuda", "old"),
    [
        ("535.183.01", "13.0", True),
        ("580.65.06", "13.0", False),
        ("535.183.01", "12.8", False),
        ("470.1", "12.8", True),
        (None, "13.0", False),
        ("535.183.01", None, False),
        ("unknown", "13.0", False),
        ("535", "99.1", False),
    ],
)
def test_drivers_and_what_torch_was_built_for(driver, cuda, old):
    assert bool(too_old(driver, cuda)) == old


def test_a_driver_that_is_too_old_is_told_before_anything_starts(monkeypatch):
    """NVML counts GPUs under any driver, so torch says that there are some."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpu_build, "ask_driver", lambda what: ["535.183.01"] * 8)
    with pytest.raises(DataError, match=r"no GPU can be used: .* 535.183.01, and CUDA 13.0, .* needs 580"):
        require_usable_gpus("0, 1")
    monkeypatch.setattr(gpu_build, "ask_driver", lambda what: None)
    require_usable_gpus("0, 1")
