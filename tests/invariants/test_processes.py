"""Two processes do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.refer import load_refer
from shared.runlog import read_records
from stage2_train.checkpoint import list_checkpoints, load_object, load_weights
from stage2_train.config import RuntimeConfig, SampleLossConfig, TrainConfig
from stage2_train.evaluate import evaluate_run
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config, segmentor_config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

TOLERANCE = 2e-3
"""Float32 sums in another order, carried through four steps of AdamW at a rate of 2e-3."""


FIGURES = (
    "loss",
    "labelled_loss",
    "unlabelled_loss",
    "coverage",
    "prior_iou",
    "fused_iou",
    "tau_fg",
    "reward",
)


def config_of(root: Path, accumulation: int, burn_in_steps: int) -> TrainConfig:
    return mini_config(
        root,
        steps=4,
        accumulation=accumulation,
        loss=SampleLossConfig(burn_in_share=burn_in_steps / 4),
        segmentor=segmentor_config(root / "tokenizer", dropout=0.0),
        runtime=RuntimeConfig(log_every=1, checkpoint_every=2, tensorboard=False),
    )


def launched(*script: object) -> str:
    """What two processes of a script print; they must end well."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
    ]  # fmt: skip
    finished = subprocess.run(
        [*command, *map(str, script)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("alone", "each", "burn_in"), [(1, 1, 0), (4, 2, 1)])
def test_two_processes_train_and_evaluate_as_one(
    mini_root: Path, tmp_path: Path, alone: int, each: int, burn_in: int
) -> None:
    """L2L with its policy; of micro-batches, two of each of two processes are four of one."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(config_of(mini_root, alone, burn_in), one, quiet=True)
    launched(HERE / "two_processes.py", mini_root, two, each, burn_in)

    logs = [read_records(run / "metrics.jsonl") for run in (one, two)]
    for a, b in zip(*logs, strict=True):
        assert a["step"] == b["step"] and a.keys() == b.keys()
        for name in FIGURES if a["step"] > burn_in else ("loss", "labelled_loss"):
            assert a[name] == pytest.approx(b[name], abs=TOLERANCE), (a["step"], name)
    weights = [load_weights(list_checkpoints(run / "checkpoints")[-1], "model") for run in (one, two)]
    # A gradient that is nothing but rounding is scaled up to a full step by AdamW: biases in front of an instance norm
    # have no other, and single weights of a unit that is all but dead.
    for name in weights[0]:
        if not name.endswith("bias"):
            off = (weights[0][name] - weights[1][name]).abs() > TOLERANCE
            assert off.float().mean() < 0.01, name
    policies = [load_object(list_checkpoints(run / "checkpoints")[-1], "method") for run in (one, two)]
    assert policies[0]["replay_seen"] == policies[1]["replay_seen"] == 4 * (4 - burn_in)
    assert torch.allclose(policies[0]["replay_rows"], policies[1]["replay_rows"], atol=TOLERANCE)

    samples = load_refer(mini_root / "data", "refshapes", "unc").samples("val")
    rows = [json.loads(line) for line in (two / "eval" / "val.jsonl").read_text().splitlines()]
    assert [row["sample_id"] for row in rows] == [sample.sample_id for sample in samples]
    ranks = [json.loads(Path(f"{two}.rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1] and ranks[0]["world"] == 2 and ranks[0]["num"] == len(samples)
    by_one = evaluate_run(two, "val", batch=3, write=False)
    assert by_one["original"] == pytest.approx(ranks[0]["original"], abs=1e-6)
    (said,) = launched(ROOT / "cli.py", "eval", two, "--batch", 3, "--json").splitlines()
    assert json.loads(said)["val"]["original"] == pytest.approx(ranks[0]["original"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_share_statistics_and_leave_together(mini_root: Path, tmp_path: Path) -> None:
    """Each normalises over samples of its own; one of them is told to stop in a validation."""
    out = tmp_path / "run"
    launched(HERE / "shared_state.py", mini_root, out)
    one, two = (torch.load(f"{out}.rank{rank}.pt") for rank in (0, 1))
    assert one.keys() == two.keys() and any(
        bool(value.any()) for name, value in one.items() if "mean" in name
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [json.loads(Path(f"{out}.rank{rank}.json").read_text()) for rank in (0, 1)] == [75, 75]
    assert list_checkpoints(out / "checkpoints")[-1].name == "step_00000002"
