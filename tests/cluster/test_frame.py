"""What the frame of every script does on a real Slurm, around a command that stands for the work."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from shared.cluster.script import ClusterJob
from shared.cluster.site import read_site
from shared.cluster.status import SILENT_S, status_of
from shared.cluster.submit import Work, submit
from tests.cluster.slurm import wait_for

pytestmark = pytest.mark.slurm

COMMAND = """\
#!/bin/bash
# Called as: PROGRAM -m cli ACTION FOLDER TASK
case "$3" in
  stop-once) # as a training does: told to stop it saves its place, and the next start ends well
    if [ -e "$4/place" ]; then exit 0; fi
    trap 'touch "$4/place"; exit 75' TERM
    touch "$4/begun"
    for _ in $(seq 300); do sleep 0.1; done
    exit 1 ;;
  never-ends) exit 75 ;;
  count) touch "$4/$5" ;;
  fail) echo "error: no more memory" >&2; exit 1 ;;
  sleep) echo "busy"; sleep 60 ;;
esac
"""


@pytest.fixture
def on_slurm(slurm, site, tmp_path, monkeypatch):
    """Submit jobs whose command is the one above; gives the status afterwards and the ids."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environment[name])
    program = tmp_path / "program"
    program.write_text(COMMAND)
    program.chmod(0o755)

    def call(*jobs, **changes):
        work = Work(target=tmp_path / "grid", folder=tmp_path / "grid" / "jobs", jobs=jobs, here=())
        return [one["job"] for one in submit(work, replace(read_site(site), python=str(program), **changes))]

    return call


def task(folder: Path, now: float | None = None) -> dict:
    return status_of(folder / "grid", now)["tasks"][0]


@pytest.mark.parametrize("slurm", [True, False], indirect=True, ids=["by exit status", "by scontrol"])
def test_a_job_told_to_stop_is_queued_again_and_goes_on(slurm, on_slurm, tmp_path):
    (job,) = on_slurm(ClusterJob(name="ablate", command=("stop-once", str(tmp_path))))
    wait_for((tmp_path / "begun").exists, "the command has begun", 60)
    assert task(tmp_path)["state"] == "running"
    slurm.call("scancel", "--signal=USR1", "--batch", job)  # what Slurm does `notice_s` before the limit
    wait_for(lambda: task(tmp_path)["state"] in ("stopped", "done"), "it has stopped", 60)
    slurm.wait_for_state(job, {"COMPLETED", "FAILED", "CANCELLED"}, 90)
    assert slurm.state(job) == "COMPLETED"
    assert task(tmp_path)["state"] == "done" and task(tmp_path)["restarts"] == 1


def test_a_job_that_makes_no_headway_fails_at_last(slurm, on_slurm, tmp_path):
    (job,) = on_slurm(ClusterJob(name="ablate", command=("never-ends",)), max_restarts=0)
    slurm.wait_for_state(job, {"COMPLETED", "FAILED", "CANCELLED"}, 60)
    assert slurm.state(job) == "FAILED"
    assert task(tmp_path)["why"].endswith("error: stopped and queued again 0 times without coming to an end")


def test_a_wide_array_comes_in_parts_and_every_task_runs_once(slurm, on_slurm, tmp_path):
    array = ClusterJob(
        name="ablate", command=("count", str(tmp_path)), per_task='"$task"', tasks=(0, 1, 2, 4)
    )
    jobs = on_slurm(array, max_array_size=2)
    assert len(jobs) == 3
    wait_for(lambda: status_of(tmp_path / "grid")["state"] == "done", "all tasks have ended", 60)
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.isdecimal()) == ["0", "1", "2", "4"]


def test_a_failure_is_named_and_what_waits_for_it_is_dropped(slurm, on_slurm, tmp_path):
    first = ClusterJob(name="priors", command=("fail",), tasks=(0,))
    jobs = on_slurm(first, ClusterJob(name="verify", command=("count",), after_others=True))
    slurm.wait_for_state(jobs[1], {"COMPLETED", "FAILED", "CANCELLED"}, 60)
    assert slurm.state(jobs[1]) == "CANCELLED"
    status = status_of(tmp_path / "grid")
    assert status["state"] == "failed"
    assert status["tasks"][0]["why"] == "exit status 1: error: no more memory"
    assert status["tasks"][1]["state"] == "waiting"


def test_a_task_whose_script_was_killed_is_lost(slurm, on_slurm, tmp_path):
    (job,) = on_slurm(ClusterJob(name="ablate", command=("sleep",)))
    file = tmp_path / "grid" / "jobs" / "ablate.0.json"
    wait_for(file.exists, "the script has begun", 60)
    os.kill(slurm.script_pid(job, "n1"), signal.SIGKILL)
    slurm.wait_for_state(job, {"COMPLETED", "FAILED", "CANCELLED"}, 60)
    assert slurm.state(job) == "FAILED"
    lost = task(tmp_path, now=file.stat().st_mtime + SILENT_S + 1)
    assert lost["state"] == "lost" and "no sign of life" in lost["why"] and lost["why"].endswith("busy")
