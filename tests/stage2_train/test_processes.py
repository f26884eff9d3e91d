"""Launchers that start fewer processes than they were asked for, and processes that disagree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.errors import DataError
from stage2_train.processes import require_same_step, say_emulated, start_accelerator
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4 and RANK is not set: start with torchrun"),
        ({"WORLD_SIZE": "4", "RANK": "0"}, "LOCAL_RANK is not set"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "started this one alone"),
    ],
)
def test_fewer_processes_than_asked_for_are_refused(
    mini_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=message):
        train(mini_config(mini_root), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"ACCELERATE_MIXED_PRECISION": "no"}])
def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert start_accelerator().num_processes == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use GPUs here")
def test_a_batch_job_with_gpus_does_not_train_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    with pytest.raises(DataError, match="Slurm gave this job GPU 0,1, and torch .* can use none"):
        start_accelerator()


@pytest.mark.slow
def test_accelerate_launch_on_a_cpu_is_seen_through(tmp_path: Path) -> None:
    """The real launcher, which starts one process there whatever it is asked for."""
    script = tmp_path / "script.py"
    script.write_text("from stage2_train.processes import start_accelerator\nstart_accelerator()\n")
    command = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_machines=1",
        "--num_processes=2", "--mixed_precision=no", "--dynamo_backend=no", str(script),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "asked for several processes and started this one alone" in done.stderr


def test_processes_that_found_different_checkpoints_do_not_train(tmp_path: Path) -> None:
    class Ranks:
        device = torch.device("cpu")

        def __init__(self, *steps: int) -> None:
            self.steps = steps

        def gather(self, own: torch.Tensor) -> torch.Tensor:
            return torch.tensor(self.steps)

    require_same_step(Ranks(4, 4), tmp_path, 4)  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=r"different checkpoints \(steps 4, 0\): .* a disk that all nodes share"
    ):
        require_same_step(Ranks(4, 0), tmp_path, 0)  # type: ignore[arg-type]


class _Device:
    type = "cuda"


@pytest.mark.parametrize(
    ("precision", "own", "said"), [("bf16", False, 1), ("bf16", True, 0), ("fp32", False, 0)]
)
def test_a_gpu_that_imitates_bfloat16_is_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: str, own: bool, said: int
) -> None:
    """Torch itself refuses such GPUs only where it cannot imitate it either."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: own or including_emulation
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    say_emulated(precision, _Device())  # type: ignore[arg-type]
    assert capsys.readouterr().err.count("note: Tesla V100 has no bfloat16 of its own") == said


_TWO = """
import sys
import torch
import torch.distributed as dist
from stage2_train.optim import broadcast_state
from stage2_train.processes import TIMEOUT, ended_together, start_accelerator

with ended_together():
    accelerator = start_accelerator()
    assert accelerator.num_processes == 2
    rank = accelerator.process_index
    assert dist.distributed_c10d._get_default_timeout(torch.distributed.distributed_c10d.Backend("gloo")) < TIMEOUT
    assert dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout == TIMEOUT
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    own = model[0].weight.detach().clone()
    broadcast_state(model)
    assert torch.equal(model[0].weight, own) == (rank == 0)
    sums = accelerator.gather(model[0].weight.detach().double().sum().reshape(1)).tolist()
    assert sums[0] == sums[1], sums
    if sys.argv[1] == "stop":
        raise SystemExit(75)
assert not dist.is_initialized()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["end", "stop"])
def test_real_processes_start_from_one_network_and_leave_their_group(tmp_path: Path, ending: str) -> None:
    """Each has drawn its own, as it would read its own from a disk that nodes do not share."""
    script = tmp_path / "script.py"
    script.write_text(_TWO)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(script),
        ending,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (
        "Error" not in done.stderr.replace("ChildFailedError", "")
        and "destroy_process_group" not in done.stderr
    )
    assert (done.returncode == 0) == (ending == "end"), done.stderr[-2000:]
