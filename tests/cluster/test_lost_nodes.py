"""Slurm loses sight of a worker or a training: it is gone with its node, or it lives on unseen beside its successor."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from shared.cluster.submit import jobs_folder
from shared.config import apply_overrides
from shared.runlog import read_records
from shared.store.reader import PriorStore
from stage2_train.recipes import RECIPES
from stage2_train.train import train
from tests.cluster.drawn import priors_recipe, settings
from tests.cluster.slurm import ENDED, wait_for
from tests.stage2_train.miniature import write_data, write_priors
from tests.stage2_train.test_train import assert_same_run

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def stat(pid):
    """State and parent of a process; a process that is gone counts as Z."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "Z", 0
    return state, int(parent)


def family(pid):
    """A process and all below it."""
    children = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdecimal() and stat(path.name)[1] == pid
    ]
    return [pid, *(below for child in children for below in family(child))]


def is_gone(pid):
    return stat(pid)[0] == "Z"


def tell(pids, number):
    """Send a signal to those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def lose_sight(slurm, job, roots):
    """Kill the step daemons above some processes; gives all of those, alive and standing still, once Slurm knows."""
    daemons = [stat(root)[1] for root in roots]
    unseen = [pid for root in roots for pid in family(root)]
    tell(daemons, signal.SIGKILL)
    pairs = list(zip(roots, daemons, strict=True))
    wait_for(lambda: all(stat(root)[1] != daemon for root, daemon in pairs), "the step daemons are gone", 10)
    tell(unseen, signal.SIGSTOP)  # not before: a stopped group is hung up when it loses its parent

    def noticed():
        slurm.look_at_nodes()
        time.sleep(2)
        return slurm.state(job) != "RUNNING"

    wait_for(noticed, "Slurm misses the job", 120)
    return unseen


def second_start(log, name):
    """What the second start of a task has said so far; "" before it."""
    return log.read_text().partition(f"== {name}, task 0: start 2")[2]


@pytest.fixture
def worker(slurm, site, l2l, drawn, tmp_path):
    """One worker that has begun on node n1: job of the array, job of the check, store, log, the script's process."""
    recipe = priors_recipe(drawn, tmp_path / "stores", "val,testA")
    answer = l2l("submit", "priors", *recipe, "--tasks", 1, "--site", site)
    array, verify = (job["job"] for job in answer["jobs"])
    store = tmp_path / "stores" / Path(answer["target"]).name
    log = jobs_folder(store) / f"priors.{array}_0.log"
    wait_for(lambda: (store / "zarr.json").exists(), "the worker has made the store", 120)
    return array, verify, store, log, slurm.pid(f"{array}_0", "n1")


def assert_whole(slurm, l2l, verify, store):
    slurm.wait_for_state(verify, ENDED, 240)
    assert slurm.state(verify) == "COMPLETED"
    assert PriorStore(store).is_complete
    status = l2l("status", store)
    assert status["state"] == "done" and status["tasks"][0]["restarts"] >= 1


def test_two_writers_of_one_shard(slurm, l2l, worker):
    """The step daemon is killed, its script lives on; Slurm starts another, and both write."""
    array, verify, store, log, script = worker
    unseen = lose_sight(slurm, f"{array}_0", [script])
    wait_for(lambda: " pairs (" in second_start(log, "priors"), "the second worker is at work", 240)
    tell(unseen, signal.SIGCONT)
    assert_whole(slurm, l2l, verify, store)
    wait_for(lambda: all(map(is_gone, unseen)), "the worker that nobody saw has ended", 120)
    assert log.read_text().count(" pairs in ") == 2, "both have written"
    assert l2l("priors", "verify", store, "--complete")["ok"]
    assert l2l("status", store)["tasks"][0]["restarts"] >= 1


def test_two_trainings_of_one_run(slurm, site, l2l, tmp_path):
    """The step daemons are killed, the training lives on; Slurm starts another, and the first one gives way."""
    dataset = write_data(tmp_path / "data")
    write_priors(tmp_path / "stores" / "refshapes.test.zarr", dataset)
    values = {
        "data.root": tmp_path / "data",
        "cache_root": tmp_path / "stores",
        "fraction": 0.25,
        "steps": 12,
        "batch_labelled": 4,
        "batch_unlabelled": 4,
        "eval_every": 0,
        "alarm.patience": 0,
        "runtime.log_every": 1,
        "runtime.checkpoint_every": 3,
        "runtime.tensorboard": "false",
    }
    run = tmp_path / "run"
    answer = l2l(
        "submit", "train", "embedded", *settings(values), "--out", run, "--processes", 1, "--site", site
    )
    job = answer["jobs"][0]["job"]
    log = run / "metrics.jsonl"

    def steps():
        return read_records(log)[-1]["step"] if log.is_file() and read_records(log) else 0

    wait_for(lambda: steps() >= 4, "a few steps and a checkpoint are done", 240)
    unseen = lose_sight(slurm, job, [slurm.pid(job, "n1"), slurm.pid(job, "n1", "0")])
    before, owner = steps(), (run / "owner.json").read_text()
    assert before < 12, "it was not stopped in time"
    said = run / "jobs" / f"train.{job}.log"
    wait_for(lambda: second_start(said, "train"), "Slurm has started it again", 120)
    wait_for(lambda: (run / "owner.json").read_text() != owner, "the second training has the run", 120)
    tell(unseen, signal.SIGCONT)
    slurm.wait_for_state(job, ENDED, 240)
    assert slurm.state(job) == "COMPLETED"
    wait_for(lambda: all(map(is_gone, unseen)), "the training that nobody saw has ended", 120)
    status = l2l("status", run)
    assert status["state"] == "done" and status["tasks"][0]["restarts"] == 1
    assert status["progress"]["steps"] == "12 of 12" and status["progress"]["resumed"] == 1

    config = apply_overrides(RECIPES["embedded"](), ["{}={}".format(*item) for item in values.items()])
    train(config, tmp_path / "whole", quiet=True)
    assert_same_run(tmp_path / "whole", run)


def test_a_node_dies(slurm, l2l, worker):
    array, verify, store, log, script = worker
    _, daemon = stat(script)
    gone = [daemon, *family(script)]
    slurm.kill_node("n1")
    tell(gone, signal.SIGKILL)
    try:
        wait_for(lambda: second_start(log, "priors"), "the other node has started it", 180)
        assert slurm.nodes(f"{array}_0") == "n2"
        assert_whole(slurm, l2l, verify, store)
    finally:
        slurm.start_node("n1")
