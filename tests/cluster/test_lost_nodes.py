"""Slurm loses sight of a worker that writes a shard: the worker is gone with its node, or it lives on unseen."""

import os
import signal
from pathlib import Path

import pytest

from shared.cluster.submit import jobs_folder
from shared.store.reader import PriorStore
from tests.cluster.drawn import priors_recipe
from tests.cluster.slurm import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCENES = 60
"""About 300 sentences: one shard."""
ENDED = {"COMPLETED", "FAILED", "CANCELLED"}


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


def second_start(log):
    """What the second start of the worker has said so far."""
    return log.read_text().partition("== priors, task 0: start 2")[2]


@pytest.fixture
def submitted(slurm, site, l2l, tmp_path):
    """One worker that has begun on node n1: job of the array, job of the check, store, log, the script's process."""
    answer = l2l("submit", "priors", *priors_recipe(tmp_path, SCENES), "--tasks", 1, "--site", site)
    array, verify = (job["job"] for job in answer["jobs"])
    store = tmp_path / "stores" / Path(answer["target"]).name
    log = jobs_folder(store) / f"priors.{array}_0.log"
    wait_for(lambda: (store / "zarr.json").exists(), "the worker has made the store", 120)
    return array, verify, store, log, slurm.script_pid(f"{array}_0", "n1")


def assert_whole(slurm, l2l, verify, store):
    slurm.wait_for_state(verify, ENDED, 240)
    assert slurm.state(verify) == "COMPLETED"
    assert PriorStore(store).is_complete
    status = l2l("status", store)
    assert status["state"] == "done" and status["tasks"][0]["restarts"] >= 1


def test_two_writers_of_one_shard(slurm, l2l, submitted):
    """The step daemon is killed, its script lives on; Slurm starts another, and both write."""
    _, verify, store, log, script = submitted
    _, daemon = stat(script)
    unseen = family(script)
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: is_gone(daemon), "the step daemon is gone", 10)
    for pid in unseen:  # not before: a stopped group is hung up when it loses its parent
        os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: " pairs (" in second_start(log), "Slurm has started it again, and it is at work", 240)
    for pid in unseen:
        os.kill(pid, signal.SIGCONT)
    assert_whole(slurm, l2l, verify, store)
    wait_for(lambda: all(map(is_gone, unseen)), "the worker that nobody saw has ended", 120)
    assert log.read_text().count(" pairs in ") == 2, "both have written"
    assert l2l("priors", "verify", store, "--complete")["ok"]
    assert l2l("status", store)["tasks"][0]["restarts"] >= 1


def test_a_node_dies(slurm, l2l, submitted):
    array, verify, store, log, script = submitted
    _, daemon = stat(script)
    gone = [daemon, *family(script)]
    slurm.kill_node("n1")
    for pid in gone:
        os.kill(pid, signal.SIGKILL)
    try:
        wait_for(lambda: log.read_text().count("== priors") >= 2, "the other node has started it", 180)
        shown = slurm.call("scontrol", "show", "job", f"{array}_0")
        assert "NodeList=n2" in shown
        assert_whole(slurm, l2l, verify, store)
    finally:
        slurm.start_node("n1")
