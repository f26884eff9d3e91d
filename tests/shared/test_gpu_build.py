"""GPUs that are there and that torch cannot use are told; a machine without any is none of its business."""

import pytest
import torch

from shared.errors import DataError
from shared.gpu_build import require_usable_gpus


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
