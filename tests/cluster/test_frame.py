"""What the frame of every script does on a real Slurm, around a command that stands for the work."""

import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shared.cluster.port import FIRST, NUM
from shared.cluster.script import ClusterJob
from shared.cluster.site import read_site
from shared.cluster.status import status_of
from shared.cluster.submit import Work, submit
from shared.cluster.tasks import SILENT_S
from shared.errors import DataError
from tests.cluster.slurm import ENDED, NODES, wait_for

pytestmark = pytest.mark.slurm

COMMAND = """\
#!/bin/bash
# Called as: PROGRAM -m cli ACTION FOLDER TASK
case "$2" in
  shared.cluster.port) exec PYTHON "$@" ;;
  torch.distributed.run) # ... -m cli FOLDER
    for last in "$@"; do case $last in --rdzv-endpoint=*) endpoint=${last#*=} ;; esac; done
    echo "$CUDA_VISIBLE_DEVICES|$PET_RDZV_CONF|$PET_LOCAL_ADDR|$endpoint" >"$last/$SLURMD_NODENAME.launched"
    exec PYTHON "$last/launcher.py" "$last" ;;
esac
case "$3" in
  stop-once) # as a training does: told to stop it saves its place, and the next start ends well
    if [ -e "$4/place" ]; then exit 0; fi
    trap 'touch "$4/place"; exit 75' TERM
    touch "$4/begun"
    for _ in $(seq 300); do sleep 0.1; done
    exit 1 ;;
  stop-or-wait) # the same, of several tasks; one that nobody stops ends when it is let go
    if [ -e "$4/$5.place" ]; then exit 0; fi
    trap 'touch "$4/$5.place"; exit 75' TERM
    touch "$4/$5.begun"
    while [ ! -e "$4/go" ]; do sleep 0.1; done ;;
  deaf-once)
    if [ -e "$4/place" ]; then exit 0; fi
    trap '' TERM
    touch "$4/place" "$4/begun"
    for _ in $(seq 600); do sleep 0.1; done
    exit 1 ;;
  never-ends) exit 75 ;;
  gpu)
    echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $SLURM_JOB_GPUS" >"$4/$5.gpu.writing"
    mv "$4/$5.gpu.writing" "$4/$5.gpu"
    while [ ! -e "$4/seen" ]; do sleep 0.1; done ;;
  count) touch "$4/$5" ;;
  fail) echo "error: no more memory" >&2; exit 1 ;;
  sleep) echo "busy"; sleep 60 ;;
esac
"""

LAUNCHER = """\
# As torchrun: TERM ends it, USR1 is left to its processes (here to itself), and whatever they end with becomes 1.
import os, pathlib, signal, sys, time
folder, node = pathlib.Path(sys.argv[1]), os.environ["SLURMD_NODENAME"]
if (folder / f"{node}.place").exists() or not (folder / "stays").exists():
    sys.exit()
def save(number, frame):
    (folder / f"{node}.place").touch()
    sys.exit(1)
if signal.getsignal(signal.SIGUSR1) != signal.SIG_IGN:
    sys.exit("USR1 would end torchrun")
is_deaf = (folder / "is-deaf").exists()
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN if is_deaf else save)
if is_deaf:
    (folder / f"{node}.place").touch()
(folder / f"{node}.begun").touch()
while not (folder / f"{node}.fails").exists():
    time.sleep(0.1)
sys.exit(1)
"""


@pytest.fixture
def on_slurm(slurm, site, tmp_path, monkeypatch):
    """Submit jobs whose command is the one above; gives their ids."""
    return submitter(slurm, site, tmp_path, monkeypatch)


@pytest.fixture
def on_gpus(slurm, gpu_site, tmp_path, monkeypatch):
    """The same at a site with GPUs."""
    return submitter(slurm, gpu_site, tmp_path, monkeypatch)


def submitter(slurm, site, tmp_path, monkeypatch):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environment[name])
    program = tmp_path / "program"
    program.write_text(COMMAND.replace("PYTHON", sys.executable))
    program.chmod(0o755)
    (tmp_path / "launcher.py").write_text(LAUNCHER)

    def call(*jobs, **changes):
        work = Work(target=tmp_path / "grid", folder=tmp_path / "grid" / "jobs", jobs=jobs, here=())
        return [one["job"] for one in submit(work, replace(read_site(site), python=str(program), **changes))]

    return call


def task(folder: Path, now: float | None = None) -> dict:
    return status_of(folder / "grid", now)["tasks"][0]


@pytest.fixture
def no_requeue_exit(slurm):
    slurm.set_requeue_exit(False)
    yield
    slurm.set_requeue_exit(True)


def test_a_job_told_to_stop_is_queued_again_and_goes_on(slurm, on_slurm, tmp_path):
    assert_stopped_once(slurm, on_slurm, tmp_path)


def test_it_is_so_where_slurm_does_not_know_the_exit_status(slurm, no_requeue_exit, on_slurm, tmp_path):
    assert_stopped_once(slurm, on_slurm, tmp_path)


def assert_stopped_once(slurm, on_slurm, tmp_path):
    (job,) = on_slurm(ClusterJob(name="ablate", command=("stop-once", str(tmp_path))))
    wait_for((tmp_path / "begun").exists, "the command has begun", 60)
    assert task(tmp_path)["state"] == "running"
    slurm.call("scancel", "--signal=USR1", "--batch", job)  # what Slurm does `notice_s` before the limit
    wait_for(lambda: task(tmp_path)["state"] in ("stopped", "done"), "it has stopped", 60)
    slurm.wait_for_state(job, ENDED, 90)
    assert slurm.state(job) == "COMPLETED"
    assert task(tmp_path)["state"] == "done" and task(tmp_path)["restarts"] == 1


def test_a_task_of_an_array_is_queued_again_by_itself(slurm, on_slurm, tmp_path):
    """The last one to start has the array's own number as its job's, which means the whole array."""
    array = ClusterJob(
        name="ablate", command=("stop-or-wait", str(tmp_path)), per_task='"$task"', tasks=(0, 1, 2)
    )
    (job,) = on_slurm(array)
    wait_for(lambda: len(list(tmp_path.glob("*.begun"))) == 3, "all tasks have begun", 60)
    shown = slurm.call("scontrol", "--oneliner", "show", "job", job)
    last = re.search(rf"^JobId={job} .*? ArrayTaskId=(\d)", shown, re.MULTILINE)[1]
    slurm.call("scancel", "--signal=USR1", "--batch", f"{job}_{last}")
    found = {}

    def has_come_back():
        found.update({one["task"]: one for one in status_of(tmp_path / "grid")["tasks"]})
        return found[int(last)]["restarts"] == 1 and found[int(last)]["state"] == "done"

    wait_for(has_come_back, "the task has come back", 90)
    assert {number for number, one in found.items() if one["state"] == "running"} == {0, 1, 2} - {int(last)}
    (tmp_path / "go").touch()
    wait_for(lambda: status_of(tmp_path / "grid")["state"] == "done", "all tasks have ended", 60)
    restarts = {one["task"]: one["restarts"] for one in status_of(tmp_path / "grid")["tasks"]}
    assert restarts == {number: int(number == int(last)) for number in range(3)}


@pytest.mark.parametrize("told", [("--signal=USR1", "--batch"), ("--signal=TERM", "--full"), ()])
def test_a_job_that_is_told_before_its_command_begins(slurm, on_slurm, tmp_path, told):
    """It comes back if it was told to stop, and not if it was cancelled."""
    setup = (f'[ -e "{tmp_path}/begun" ] || {{ touch "{tmp_path}/begun"; sleep 15; }}',)
    (job,) = on_slurm(ClusterJob(name="ablate", command=("count", str(tmp_path), "0")), setup=setup)
    wait_for((tmp_path / "begun").exists, "it has begun", 60)
    slurm.call("scancel", *told, job)
    slurm.wait_for_state(job, ENDED, 60)
    wait_for(lambda: task(tmp_path)["state"] != "running", "it has ended", 30)
    if not told:
        time.sleep(8)  # longer than a job that is queued again waits here
    found = task(tmp_path)
    assert (found["state"], found["restarts"]) == (("done", 1) if told else ("cancelled", 0)), found
    assert (tmp_path / "0").exists() == bool(told)


def test_a_job_that_does_not_stop_is_killed_and_queued_again_before_its_limit(slurm, on_slurm, tmp_path):
    (job,) = on_slurm(ClusterJob(name="priors", command=("deaf-once", str(tmp_path)), tasks=(0,)), notice_s=4)
    wait_for((tmp_path / "begun").exists, "the command has begun", 60)
    slurm.call("scancel", "--signal=USR1", "--batch", f"{job}_0")
    wait_for(lambda: task(tmp_path)["state"] != "running", "it has been killed", 20)
    why = "queued again: stopped at its deadline: busy for 3 s after it was told, so killed"
    assert task(tmp_path)["why"].startswith(why)
    slurm.wait_for_state(f"{job}_0", ENDED, 60)
    assert slurm.state(f"{job}_0") == "COMPLETED" and task(tmp_path)["restarts"] == 1


@pytest.mark.parametrize("tasks", [(), (0, 1)])
def test_a_job_that_is_cancelled_while_it_runs_does_not_come_back(slurm, on_slurm, tmp_path, tasks):
    """It is sent what a job at its limit is sent, saves, and would queue itself again."""
    job = ClusterJob(name="ablate", command=("stop-once", str(tmp_path)), tasks=tasks)
    (number,) = on_slurm(job, max_running=1)
    wait_for((tmp_path / "begun").exists, "the command has begun", 60)
    slurm.call("scancel", number)
    wait_for(lambda: task(tmp_path)["state"] not in ("running", "waiting"), "it has ended", 60)
    assert (tmp_path / "place").exists(), "it had time to save"
    time.sleep(8)  # longer than a job that is queued again waits here
    found = task(tmp_path)
    assert (found["state"], found["restarts"]) == ("cancelled", 0), found
    assert status_of(tmp_path / "grid")["state"] == "cancelled"


def test_a_job_that_stops_while_the_controller_is_down_is_queued_again(slurm, on_slurm, tmp_path):
    (job,) = on_slurm(ClusterJob(name="ablate", command=("stop-once", str(tmp_path))))
    wait_for((tmp_path / "begun").exists, "the command has begun", 60)
    script = slurm.pid(job, "n1")
    slurm.kill_controller()
    os.kill(script, signal.SIGUSR1)
    wait_for((tmp_path / "place").exists, "it has saved its place", 30)
    time.sleep(2)
    slurm.start_controller()
    slurm.wait_for_state(job, ENDED, 120)
    assert slurm.state(job) == "COMPLETED"
    assert task(tmp_path)["state"] == "done" and task(tmp_path)["restarts"] == 1


def test_a_job_that_makes_no_headway_fails_at_last(slurm, on_slurm, tmp_path):
    (job,) = on_slurm(ClusterJob(name="ablate", command=("never-ends",)), max_restarts=0)
    slurm.wait_for_state(job, ENDED, 60)
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


def test_a_script_submitted_again_by_hand_is_the_same_array(slurm, on_slurm, tmp_path):
    on_slurm(
        ClusterJob(name="ablate", command=("count", str(tmp_path)), per_task='"$task"', tasks=(0, 2)),
    )
    wait_for(lambda: status_of(tmp_path / "grid")["state"] == "done", "all tasks have ended", 60)
    done = [tmp_path / "0", tmp_path / "2"]
    for file in done:
        file.unlink()
    slurm.call("sbatch", tmp_path / "grid" / "jobs" / "ablate.sh")
    wait_for(lambda: all(file.exists() for file in done), "all tasks have run again", 60)


def test_a_failure_is_named_and_what_waits_for_it_is_dropped(slurm, on_slurm, tmp_path):
    first = ClusterJob(name="priors", command=("fail",), tasks=(0,))
    jobs = on_slurm(first, ClusterJob(name="verify", command=("count",), after_others=True))
    slurm.wait_for_state(jobs[1], ENDED, 60)
    assert slurm.state(jobs[1]) == "CANCELLED"
    status = status_of(tmp_path / "grid")
    assert status["state"] == "failed"
    assert status["tasks"][0]["why"] == "exit status 1: error: no more memory"
    assert (status["tasks"][1]["state"], status["tasks"][1]["why"]) == (
        "cancelled",
        "not started; Slurm: CANCELLED",
    )


def test_what_is_cancelled_in_the_queue_is_told_from_what_waits(slurm, on_slurm, tmp_path):
    array = ClusterJob(name="ablate", command=("count", str(tmp_path)), per_task='"$task"', tasks=(0, 1, 2))
    (first, second) = on_slurm(array, max_array_size=2, sbatch=("--hold",))
    wait_for(lambda: status_of(tmp_path / "grid")["state"] == "waiting", "the queue answers", 30)
    waiting = [(one["state"], one["why"]) for one in status_of(tmp_path / "grid")["tasks"]]
    assert waiting == [("waiting", "not started; in the queue: JobHeldUser")] * 3
    slurm.call("scancel", f"{first}_1", second)
    slurm.call("scontrol", "release", first)
    slurm.wait_for_state(f"{first}_0", ENDED, 60)
    status = status_of(tmp_path / "grid")
    assert [one["state"] for one in status["tasks"]] == ["done", "cancelled", "cancelled"]
    assert status["state"] == "cancelled"


def test_what_slurm_refuses_is_said_in_its_own_words(on_slurm):
    with pytest.raises(
        DataError, match="invalid partition specified: nowhere; Batch job submission failed: Invalid"
    ):
        on_slurm(ClusterJob(name="ablate", command=("count",)), partition="nowhere")


def test_a_job_that_is_still_in_the_queue_is_not_submitted_again(slurm, on_slurm, tmp_path):
    job = ClusterJob(name="ablate", command=("count", str(tmp_path)), per_task='"$task"', tasks=(0,))
    (number,) = on_slurm(job, sbatch=("--hold",))
    wait_for(lambda: status_of(tmp_path / "grid")["state"] == "waiting", "the queue answers", 30)
    with pytest.raises(DataError, match=rf"grid: job {number} \(PENDING\) of an earlier submission"):
        on_slurm(job)
    slurm.call("scancel", number)
    wait_for(lambda: status_of(tmp_path / "grid")["state"] == "cancelled", "it is gone", 30)
    (again,) = on_slurm(job)
    slurm.wait_for_state(again, ENDED, 60)
    assert task(tmp_path)["state"] == "done"


def test_a_job_that_submits_another_hands_on_no_restarts(slurm, on_slurm, tmp_path, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": "7", "SLURM_MEM_PER_NODE": "1"}.items():
        monkeypatch.setenv(name, value)
    (job,) = on_slurm(ClusterJob(name="ablate", command=("count", str(tmp_path), "0")))
    slurm.wait_for_state(job, ENDED, 60)
    assert task(tmp_path)["state"] == "done" and task(tmp_path)["restarts"] == 0


def test_every_task_of_an_array_has_a_gpu_of_its_own(slurm, on_gpus, tmp_path):
    array = ClusterJob(name="priors", command=("gpu", str(tmp_path)), per_task='"$task"', tasks=(0, 1, 2, 3))
    (job,) = on_gpus(array)
    wait_for(lambda: len(list(tmp_path.glob("*.gpu"))) == 4, "four tasks run at once", 60)
    seen = [(tmp_path / f"{number}.gpu").read_text().split() for number in range(4)]
    (tmp_path / "seen").touch()
    slurm.wait_for_state(job, ENDED, 60)
    assert sorted(node for node, *_ in seen) == ["n1", "n1", "n2", "n2"]
    assert {(node, visible) for node, visible, _ in seen} == {(n, g) for n in NODES for g in "01"}
    assert all(visible == given for _, visible, given in seen)


def test_a_training_has_all_gpus_of_its_nodes(slurm, on_gpus, tmp_path):
    job = ClusterJob(name="train", command=(str(tmp_path),), num_nodes=2, num_processes=2)
    (number,) = on_gpus(job)
    slurm.wait_for_state(number, ENDED, 60)
    assert slurm.state(number) == "COMPLETED", (
        tmp_path / "grid" / "jobs" / f"train.{number}.log"
    ).read_text()
    seen = [(tmp_path / f"{node}.launched").read_text().split("|") for node in NODES]
    assert [visible for visible, *_ in seen] == ["0,1", "0,1"]
    assert [host for _, host, *_ in seen] == ["is_host=1", "is_host=0"]
    assert [own for *_, own, _ in seen] == ["127.0.0.1"] * 2, "addresses that Slurm has for the nodes"
    (endpoint,) = {endpoint for *_, endpoint in seen}
    address, _, port = endpoint.strip().rpartition(":")
    assert address == "127.0.0.1" and FIRST <= int(port) < FIRST + NUM


CONTAINER = """\
# As the launcher of a container that handles signals of its own: what it starts has their defaults.
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda number, frame: None)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_torchrun_in_a_container_ignores_what_its_processes_are_told_by(slurm, on_slurm, tmp_path):
    (tmp_path / "container.py").write_text(CONTAINER)
    job = started_training(on_slurm, tmp_path, container=f"{sys.executable} {tmp_path}/container.py")
    slurm.call("scancel", "--signal=USR1", "--batch", job)
    slurm.wait_for_state(job, ENDED, 90)
    assert slurm.state(job) == "COMPLETED" and task(tmp_path)["restarts"] == 1


@pytest.fixture
def training(slurm, on_slurm, tmp_path):
    """A training that has begun on both nodes."""
    return started_training(on_slurm, tmp_path)


def started_training(on_slurm, tmp_path, **changes):
    (tmp_path / "stays").touch()
    job = ClusterJob(name="train", command=(str(tmp_path),), num_nodes=2, num_processes=2)
    (job,) = on_slurm(job, **changes)
    wait_for(lambda: len(list(tmp_path.glob("*.begun"))) == 2, "both nodes have begun", 60)
    return job


@pytest.mark.parametrize("signals", ["TERM", "USR1"])
def test_a_training_is_queued_again_when_its_steps_alone_are_told(slurm, training, tmp_path, signals):
    """As when another job is to have its place: the script hears nothing."""
    slurm.call("scancel", f"--signal={signals}", training)
    slurm.wait_for_state(training, ENDED, 90)
    assert slurm.state(training) == "COMPLETED", task(tmp_path)
    assert (task(tmp_path)["state"], task(tmp_path)["restarts"]) == ("done", 1)
    assert len(list(tmp_path.glob("*.place"))) == 2, "both nodes had time to save"


def test_a_training_that_does_not_stop_is_killed_and_queued_again_before_its_limit(slurm, on_slurm, tmp_path):
    (tmp_path / "is-deaf").touch()
    job = started_training(on_slurm, tmp_path, notice_s=4)
    slurm.call("scancel", "--signal=USR1", "--batch", job)
    slurm.wait_for_state(job, ENDED, 60)
    assert slurm.state(job) == "COMPLETED", task(tmp_path)
    assert (task(tmp_path)["state"], task(tmp_path)["restarts"]) == ("done", 1)
    assert "stopped at its deadline" in (tmp_path / "grid" / "jobs" / f"train.{job}.log").read_text()


def test_a_training_fails_when_a_node_does(slurm, training, tmp_path):
    """Slurm tells the other node by TERM."""
    (tmp_path / "n2.fails").touch()
    slurm.wait_for_state(training, ENDED, 90)
    assert slurm.state(training) == "FAILED"
    assert (tmp_path / "n1.place").exists(), "told"
    assert task(tmp_path)["why"].startswith("exit status 1: ") and task(tmp_path)["restarts"] == 0


def test_a_training_that_is_cancelled_does_not_come_back(slurm, training, tmp_path):
    slurm.call("scancel", training)
    wait_for(lambda: task(tmp_path)["state"] not in ("running", "waiting"), "it has ended", 60)
    time.sleep(8)  # longer than a job that is queued again waits here
    assert (task(tmp_path)["state"], task(tmp_path)["restarts"]) == ("cancelled", 0)


def test_a_task_whose_script_was_killed_is_lost(slurm, on_slurm, tmp_path):
    (job,) = on_slurm(ClusterJob(name="ablate", command=("sleep",)))
    file = tmp_path / "grid" / "jobs" / "ablate.0.json"
    wait_for(file.exists, "the script has begun", 60)
    os.kill(slurm.pid(job, "n1"), signal.SIGKILL)
    slurm.wait_for_state(job, ENDED, 60)
    assert slurm.state(job) == "FAILED"
    lost = task(tmp_path, now=file.stat().st_mtime + SILENT_S + 1)
    assert lost["state"] == "lost" and "no sign of life" in lost["why"]
    assert lost["why"].endswith("it last said: busy; Slurm: FAILED")
