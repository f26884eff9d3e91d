"""A training over two nodes of two processes, told to stop on the way, ends as one that was never told."""

import json
import time

import pytest

from shared.runlog import read_records
from tests.cluster.drawn import settings
from tests.cluster.slurm import ENDED, wait_for
from tests.stage2_train.miniature import write_data, write_priors
from tests.stage2_train.test_train import assert_same_run

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS = 16
VALUES = {
    "fraction": 0.25,
    "steps": STEPS,
    "batch_labelled": 4,
    "batch_unlabelled": 4,
    "eval_every": 0,
    "alarm.patience": 0,
    "runtime.log_every": 1,
    "runtime.checkpoint_every": 0,
    "runtime.tensorboard": "false",
}


def test_a_preempted_training_ends_with_the_same_bits(slurm, site, l2l, tmp_path):
    """The controller is killed under the one that is never told to stop, and while the other waits to go on."""
    dataset = write_data(tmp_path / "data")
    write_priors(tmp_path / "stores" / "refshapes.test.zarr", dataset)
    values = {"data.root": tmp_path / "data", "cache_root": tmp_path / "stores", **VALUES}
    recipe = ["embedded", *settings(values)]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    jobs = {}
    for run in (stopped, whole):
        answer = l2l("submit", "train", *recipe, "--out", run, "--nodes", 2, "--processes", 2, "--site", site)
        (job,) = answer["jobs"]
        jobs[run] = job["job"]

    wait_for(lambda: logged(stopped) >= 3, "a few steps are logged", 240)
    slurm.call("scancel", "--signal=USR1", "--batch", jobs[stopped])
    wait_for(lambda: any((stopped / "checkpoints").glob("step_*")), "a checkpoint is there", 30)
    wait_for(lambda: l2l("status", stopped)["tasks"][0]["state"] == "stopped", "the run has stopped", 90)
    status = l2l("status", stopped)
    saved = status["progress"]["checkpoint"]
    assert status["tasks"][0]["why"].startswith(
        f"queued again: stopped at {saved} of {STEPS}, checkpoint written"
    )
    said = next((stopped / "jobs").glob("*.log")).read_text()
    assert "death signal" not in said, "torchrun was told to stop as well, and hurries its processes"
    assert saved.startswith("step ") and 3 <= int(saved.split()[1]) < STEPS

    wait_for(lambda: logged(whole) >= 1, "the other run has begun", 240)
    assert slurm.state(jobs[stopped]) == "PENDING"
    slurm.kill_controller()
    time.sleep(3)
    slurm.start_controller()
    for run in (whole, stopped):
        slurm.wait_for_state(jobs[run], ENDED, 240)
        assert slurm.state(jobs[run]) == "COMPLETED", l2l("status", run)
        assert json.loads((run / "config.json").read_text())["num_processes"] == 4
    status = l2l("status", stopped)
    assert status["state"] == "done" and status["progress"]["resumed"] == 1
    assert status["tasks"][0]["restarts"] == 1 and l2l("status", whole)["tasks"][0]["restarts"] == 0
    assert_same_run(whole, stopped)


def logged(run):
    log = run / "metrics.jsonl"
    return len(read_records(log)) if log.is_file() else 0
