"""What the files of a store, a run or a grid say about it; they are written here as the jobs leave them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.cluster.overview import overview_of
from shared.cluster.queue import Queue
from shared.cluster.status import format_status, status_of
from shared.cluster.submit import read_submitted
from shared.cluster.tasks import SILENT_S
from shared.errors import DataError
from shared.runlog import RunLog
from shared.store.schema import prior_fields
from shared.store.writer import create_store, write_shard
from tests.shared.store.store_factory import ATTRS, GRID, NUM_ROWS, shard_arrays, static_arrays

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def queue(monkeypatch):
    """What the queue answers, by (job, index); nobody is there to ask until a test puts something in."""
    found = {}

    def ask(scripts):
        assert set(scripts.values()) == {"s"}
        return Queue(found=found) if found else Queue(problem="no squeue here to ask")

    monkeypatch.setattr("shared.cluster.tasks.ask_queue", ask)
    return found


def submitted(folder, submission, name, job, tasks, offset=0):
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "name": name, "job": job, "tasks": tasks, "script": "s", "offset": offset, "submission": submission
    }  # fmt: skip
    with (folder / "submitted.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def task(folder, name, number, job, state, status=0, *, said="", restarts=0, age=0.0):
    """The file and the log of a task, last touched `age` seconds ago."""
    log = f"{name}.{job}_{number}.log"
    (folder / log).write_text(f"error: of an earlier start\n== {name}: start {restarts + 1}\n{said}\n")
    record = {"job": job, "host": "n1", "restarts": restarts, "log": log, "state": state, "status": status}
    file = folder / f"{name}.{number}.json"
    file.write_text(json.dumps(record))
    os.utime(file, (NOW - age, NOW - age))


@pytest.fixture
def trainer():
    """What `owner.json` of a run says whose training lives on this machine, until the process is killed."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "train"])
    try:
        wait_until(lambda: b"train" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        yield {"host": socket.gethostname(), "pid": process.pid}
    finally:
        process.kill()
        process.wait()


def store(path, shards):
    create_store(path, num_rows=NUM_ROWS, fields=prior_fields(GRID), attrs=ATTRS, static=static_arrays())
    for shard in shards:
        write_shard(path, shard, shard_arrays(shard), {"ok": 1})
    return path


def test_a_store_and_each_of_its_tasks(tmp_path):
    path, jobs = store(tmp_path / "s.zarr", [0]), tmp_path / "s.jobs"
    submitted(jobs, 1, "priors", "7", [0, 1, 2, 3, 4])
    submitted(jobs, 1, "verify", "8", [0])
    task(jobs, "priors", 0, "7", "ended", 0)
    task(jobs, "priors", 1, "7", "ended", 2, said="loading\nerror: no model\nsrun: bye")
    task(jobs, "priors", 2, "7", "running", age=SILENT_S / 2)
    task(jobs, "priors", 3, "7", "running", age=SILENT_S + 1, said="chunk 3 of 9")
    task(jobs, "priors", 4, "7", "ended", 75, restarts=2, said="stopped")
    status = status_of(path, NOW)
    assert (status["kind"], status["state"]) == ("store", "running")
    assert status["progress"]["shards"] == "1 of 3" and status["progress"]["rows"] == f"512 of {NUM_ROWS}"
    assert [one["state"] for one in status["tasks"]] == [
        "done", "failed", "running", "lost", "stopped", "waiting"
    ]  # fmt: skip
    whys = [one["why"] for one in status["tasks"]]
    assert whys[1] == "exit status 2: error: no model"
    assert whys[3] == f"no sign of life for {SILENT_S + 1} s; it last said: chunk 3 of 9"
    assert whys[4] == "queued again: stopped" and status["tasks"][4]["restarts"] == 2
    text = format_status(status)
    assert "job priors: 1 done, 1 failed, 1 running, 1 lost, 1 stopped\njob" not in text
    assert "task 1 (7 on n1, started 1x): failed, exit status 2: error: no model\n" in text
    assert f"log: {jobs / 'priors.7_1.log'}" in text and text.endswith(
        "job verify: 1 waiting\n  1 waiting: not started: waiting, or cancelled (no squeue here to ask)"
    )


LAUNCHER = """\
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
srun: error: n2: task 1: Exited with exit code 1"""
SAID = {
    "error: no masks\n[rank0]: ValueError: x\nsrun: bye": "error: no masks",
    f"train: 9/20\nstopped at step 9 of 20\n{LAUNCHER}": "stopped at step 9 of 20",
    f"[rank1]: torch.OutOfMemoryError: no memory\n[rank0]: DistBackendError: lost a peer\n{LAUNCHER}": (
        "[rank1]: torch.OutOfMemoryError: no memory"
    ),
    f"    raise ValueError\nValueError\n{LAUNCHER}": "ValueError",
    f"Errors: 0\n{LAUNCHER}": "srun: error: n2: task 1: Exited with exit code 1",
}


@pytest.mark.parametrize("said", SAID)
def test_the_line_that_says_most_is_shown(tmp_path, said):
    jobs = tmp_path / "run" / "jobs"
    submitted(jobs, 1, "train", "7", [0])
    task(jobs, "train", 0, "7", "ended", 1, said=said)
    assert status_of(tmp_path / "run", NOW)["tasks"][0]["why"] == f"exit status 1: {SAID[said]}"


def test_a_start_that_slurm_took_back_is_queued_again_whatever_its_end_looks_like(tmp_path):
    jobs = tmp_path / "run" / "jobs"
    submitted(jobs, 1, "train", "7", [0])
    told = "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***"
    task(jobs, "train", 0, "7", "ended", 143, said=f"{told}\nConnectionError: lost a peer")
    found = status_of(tmp_path / "run", NOW)["tasks"][0]
    assert found["state"] == "stopped" and found["why"].startswith("queued again: ConnectionError: lost")


def test_the_queue_is_asked_about_what_files_do_not_say(tmp_path, queue):
    path, jobs = store(tmp_path / "s.zarr", [0]), tmp_path / "s.jobs"
    submitted(jobs, 1, "priors", "7", [0, 1, 2, 3])
    submitted(jobs, 1, "priors", "8", [1000, 1001, 1002, 1003, 1004], offset=1000)
    task(jobs, "priors", 0, "7", "ended", 75, said="saved")
    task(jobs, "priors", 1, "7", "ended", 75, said="saved")
    task(jobs, "priors", 2, "7", "running", age=SILENT_S + 1)
    task(jobs, "priors", 3, "7", "running", age=SILENT_S + 1)
    task(jobs, "priors", 1000, "8", "running")
    queue |= {
        ("7", 0): ("PENDING", "BeginTime"),
        ("7", 2): ("PENDING", "Resources"),
        ("7", 3): ("RUNNING", "None"),
        ("8", 0): ("RUNNING", "None"),
        ("8", 1): ("PENDING", "JobHeldUser"),
        ("8", 2): ("CANCELLED", "None"),
        ("8", 4): ("FAILED", "NonZeroExitCode"),
    }
    status = status_of(path, NOW)
    silent = f"no sign of life for {SILENT_S + 1} s; it last said: == priors: start 1"
    assert [(one["state"], one["why"]) for one in status["tasks"]] == [
        ("stopped", "queued again: saved; in the queue: BeginTime"),
        ("cancelled", "queued again: saved; no longer in the queue"),
        ("waiting", f"{silent}; in the queue: Resources"),
        ("lost", f"{silent}; Slurm: RUNNING"),
        ("running", ""),
        ("waiting", "not started; in the queue: JobHeldUser"),
        ("cancelled", "not started; Slurm: CANCELLED"),
        ("cancelled", "not started; no longer in the queue"),
        ("failed", "not started; Slurm: FAILED"),
    ]
    text = format_status(status)
    assert "  1 waiting: not started; in the queue: JobHeldUser\n" in text
    assert "  task 1002 (8): cancelled, not started; Slurm: CANCELLED\n" in text


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ("OUT_OF_MEMORY", "failed"),
        ("CANCELLED", "cancelled"),
        ("PENDING", "waiting"),
        ("RUNNING", "running"),
        ("COMPLETED", "running"),
        ("", "running"),
    ],
)
def test_a_task_that_was_killed_does_not_read_as_running(tmp_path, queue, found, state):
    """Its script had no time to say so: Slurm knows it before the task has been silent for long."""
    submitted(tmp_path / "run" / "jobs", 1, "train", "7", [0])
    task(tmp_path / "run" / "jobs", "train", 0, "7", "running", age=SILENT_S / 2, said="step 3")
    (one,) = status_of(tmp_path / "run", NOW)["tasks"]
    assert (one["state"], one["why"]) == ("running", ""), "nobody to ask"
    queue["7" if found else "9", 0] = found, "None"
    (one,) = status_of(tmp_path / "run", NOW)["tasks"]
    assert one["state"] == state
    said = f"no sign of life for {SILENT_S / 2:.0f} s; it last said: step 3; "
    assert one["why"].startswith(said) == (state != "running") and bool(one["why"]) == (state != "running")


def test_what_was_cancelled_in_the_queue_is_not_waited_for(tmp_path, queue):
    submitted(tmp_path / "run" / "jobs", 1, "train", "7", [0])
    assert status_of(tmp_path / "run", NOW)["state"] == "waiting"
    queue["9", 0] = "RUNNING", "None"
    assert status_of(tmp_path / "run", NOW)["state"] == "cancelled"


def test_a_task_that_begins_while_the_queue_is_asked_has_begun(tmp_path, monkeypatch):
    jobs = tmp_path / "run" / "jobs"
    submitted(jobs, 1, "train", "7", [0])

    def ask(scripts):
        task(jobs, "train", 0, "7", "running")
        return Queue()

    monkeypatch.setattr("shared.cluster.tasks.ask_queue", ask)
    assert status_of(tmp_path / "run", NOW)["state"] == "running"


def test_a_later_submission_counts_alone(tmp_path):
    path, jobs = store(tmp_path / "s.zarr", [0, 1]), tmp_path / "s.jobs"
    submitted(jobs, 1, "priors", "7", [0, 1])
    task(jobs, "priors", 0, "7", "ended", 1)
    task(jobs, "priors", 1, "7", "ended", 1)
    assert status_of(path, NOW)["state"] == "failed"
    submitted(jobs, 2, "priors", "9", [1])
    (only,) = status_of(path, NOW)["tasks"]
    assert (only["task"], only["job"], only["state"]) == (1, "9", "waiting")
    task(jobs, "priors", 1, "9", "ended", 0)
    assert status_of(path, NOW)["state"] == "unfinished"


def test_a_complete_store_is_done_unless_its_check_failed(tmp_path):
    path, jobs = store(tmp_path / "s.zarr", [0, 1, 2]), tmp_path / "s.jobs"
    assert status_of(path)["state"] == "done"
    submitted(jobs, 1, "priors", "7", [0])
    submitted(jobs, 1, "verify", "8", [0])
    task(jobs, "priors", 0, "7", "ended", 1)
    task(jobs, "verify", 0, "8", "ended", 0)
    assert status_of(path, NOW)["state"] == "done"
    task(jobs, "verify", 0, "8", "ended", 1)
    assert status_of(path, NOW)["state"] == "failed"


def test_a_run_is_done_with_its_scores_if_the_latest_submission_asked_for_them(tmp_path):
    run, jobs = tmp_path / "run", tmp_path / "run" / "jobs"
    submitted(jobs, 1, "train", "7", [0])
    submitted(jobs, 1, "eval", "8", [0])
    task(jobs, "train", 0, "7", "ended", 0)
    (run / "config.json").write_text(json.dumps({"config": {"steps": 9}}))
    (run / "done.json").write_text("{}")
    assert status_of(run, NOW)["state"] == "waiting"
    for state, status, word in (("running", 0, "running"), ("ended", 1, "failed"), ("ended", 0, "done")):
        task(jobs, "eval", 0, "8", state, status)
        assert status_of(run, NOW)["state"] == word
    task(jobs, "eval", 0, "8", "ended", 1)
    submitted(jobs, 2, "train", "9", [0])
    task(jobs, "train", 0, "9", "ended", 0)
    found = status_of(run, NOW)
    assert found["state"] == "done" and [one["name"] for one in found["tasks"]] == ["train"]
    submitted(jobs, 3, "eval", "10", [0])
    task(jobs, "eval", 0, "10", "ended", 1)
    found = status_of(run, NOW)
    assert found["state"] == "failed" and [one["name"] for one in found["tasks"]] == ["train", "eval"]


@pytest.mark.parametrize("cause", ["JOB REQUEUE", "NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS"])
def test_a_task_that_slurm_took_back_waits_in_the_queue(tmp_path, cause):
    """A node that its keepers take down ends its tasks by a signal, and they are queued again."""
    path, jobs = store(tmp_path / "s.zarr", []), tmp_path / "s.jobs"
    submitted(jobs, 1, "priors", "7", [0])
    said = f"slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2030-01-01T00:00:00 DUE TO {cause} ***"
    task(jobs, "priors", 0, "7", "ended", 143, said=said)
    status = status_of(path, NOW)
    assert status["state"] == "waiting" and status["tasks"][0]["state"] == "stopped"


def test_a_task_that_was_cancelled_while_it_ran_is_told_from_one_that_was_stopped(tmp_path):
    path, jobs = store(tmp_path / "s.zarr", []), tmp_path / "s.jobs"
    submitted(jobs, 1, "priors", "7", [0])
    task(jobs, "priors", 0, "7", "cancelled", 75, said="stopped at a signal")
    status = status_of(path, NOW)
    assert (status["state"], status["tasks"][0]["state"]) == ("cancelled", "cancelled")
    assert status["tasks"][0]["why"] == "cancelled while it ran: stopped at a signal"


def test_jobs_that_wait_need_no_product_yet(tmp_path):
    submitted(tmp_path / "s.jobs", 1, "priors", "7", [0, 1])
    status = status_of(tmp_path / "s.zarr", NOW)
    assert status["state"] == "waiting" and status["progress"] == {"shards": "0 (no store yet)"}
    submitted(tmp_path / "run" / "jobs", 1, "train", "7", [0])
    assert status_of(tmp_path / "run", NOW)["kind"] == "run"


def test_what_is_left_of_a_run_follows_its_latest_pace(tmp_path, trainer):
    """Seconds count on over restarts; the first, slow records of a long log are forgotten."""
    run = tmp_path / "runs" / "a" / "fraction-0.1" / "seed-1"
    run.mkdir(parents=True)
    (run / "owner.json").write_text(json.dumps(trainer))
    (run / "config.json").write_text(json.dumps({"config": {"steps": 130}}))
    with RunLog(run, tensorboard=False) as log:
        log.log(10, "train", loss=0.5, seconds=1000.0)
        assert "left" not in status_of(run)["progress"]
        for step in range(20, 31):
            log.log(step, "train", loss=0.5, seconds=1000.0 + 4.0 * step)
        log.log(30, "val", oiou_original=0.5)
        for step in range(31, 41):
            log.log(step, "train", loss=0.5, seconds=1120.0 + 2.0 * (step - 30))
    assert status_of(run)["progress"]["left"] == "about 4 min 25 s"  # 9 steps of 4 s and 10 of 2 s, 90 to go
    assert status_of(tmp_path / "runs")["progress"]["cells"] == {
        "a/fraction-0.1/seed-1": "40 of 130, about 4 min 25 s left"
    }
    (run / "done.json").write_text("{}")
    assert "left" not in status_of(run)["progress"]


def test_of_a_run_that_nobody_trains_no_time_is_left(tmp_path, trainer):
    """Neither here nor in a job; that a cell is trained in a job is known by the machines of the jobs that run."""
    grid = tmp_path / "grid"
    cell = grid / "a" / "fraction-0.1" / "seed-1"
    cell.mkdir(parents=True)
    (cell / "config.json").write_text(json.dumps({"config": {"steps": 130}}))
    with RunLog(cell, tensorboard=False) as log:
        for step in (10, 20, 30):
            log.log(step, "train", loss=0.5, seconds=float(step))

    def left():
        shown = status_of(grid, NOW)["progress"]["cells"]["a/fraction-0.1/seed-1"]
        return "left" in status_of(cell, NOW)["progress"], shown.partition(", ")[2]

    assert left() == (False, "")
    (cell / "owner.json").write_text(json.dumps(trainer))
    assert left() == (True, "about 1 min 40 s left")
    (cell / "owner.json").write_text(json.dumps({"host": "n1", "pid": 1}))
    assert left() == (False, "")
    submitted(grid / "jobs", 1, "ablate", "5", [0])
    task(grid / "jobs", "ablate", 0, "5", "running")
    assert left() == (False, "about 1 min 40 s left")
    task(grid / "jobs", "ablate", 0, "5", "ended", 1, said="error: no disk")
    assert left() == (False, "")


def test_a_run_that_failed_says_why_until_it_is_gone_on_with(tmp_path, trainer):
    run, failure = tmp_path / "runs" / "one", {"reason": "step 5: the loss is nan", "step": 5}
    run.mkdir(parents=True)
    (run / "failed.json").write_text(json.dumps(failure))
    status = status_of(run)
    assert (status["kind"], status["state"]) == ("run", "failed"), "it left nothing else: no step was done"
    assert status["progress"] == {"steps": "0 (not begun)", "failed": failure["reason"]}
    (run / "config.json").write_text(json.dumps({"config": {"steps": 9}}))
    with RunLog(run, tensorboard=False) as log:
        for step in (1, 3, 5):
            log.log(step, "train", loss=0.5, seconds=float(step))
    (run / "owner.json").write_text(
        json.dumps(trainer)
    )  # a number that came again, or a process that lives on
    status = status_of(run)
    assert status["state"] == "failed" and "left" not in status["progress"]
    assert "  failed: step 5: the loss is nan" in format_status(status).splitlines()
    found = overview_of(tmp_path / "runs")
    assert found["state"] == "failed"
    assert found["progress"]["holds"] == {"one": "run, failed, steps 5 of 9, step 5: the loss is nan"}
    (run / "failed.json").unlink()
    status = status_of(run)
    assert status["state"] == "running" and status["progress"]["left"] == "about 4 s"
    (run / "failed.json").write_text(json.dumps(failure))
    submitted(run / "jobs", 1, "train", "7", [0])
    task(run / "jobs", "train", 0, "7", "running")
    status = status_of(run, NOW)
    assert status["state"] == "running" and "failed" not in status["progress"], "a job goes on with it"
    task(run / "jobs", "train", 0, "7", "ended", 1, said="error: no disk")
    assert status_of(run, NOW)["progress"]["failed"] == failure["reason"]
    (run / "done.json").write_text("{}")
    assert status_of(run, NOW)["state"] == "done" and "failed" not in status_of(run, NOW)["progress"]


def test_a_run_on_its_way_and_at_its_end(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step_00000004").mkdir(parents=True)
    (run / "checkpoints" / "step_00000006.partial").mkdir()
    (run / "config.json").write_text(json.dumps({"config": {"steps": 9}}))
    for resume_step in (0, 4):
        with RunLog(run, tensorboard=False, resume_step=resume_step) as log:
            if resume_step:
                log.log(resume_step, "resume", num_processes=1)
            log.log(resume_step + 1, "train", loss=0.5)
    status = status_of(run)
    assert (status["kind"], status["state"]) == ("run", "unfinished")
    assert status["progress"] == {"steps": "5 of 9", "checkpoint": "step 4", "resumed": 1}
    (run / "checkpoints" / "step_00000007").mkdir()  # a run that logs every few steps was stopped between two
    assert (
        status_of(run)["progress"] | {"steps": "7 of 9", "checkpoint": "step 7"} == status_of(run)["progress"]
    )
    (run / "checkpoints" / "step_00000007").rmdir()
    with RunLog(run, tensorboard=False) as log:
        log.log(5, "val", oiou_model=0.5, oiou_original=0.6251, num=7)
        log.log(6, "train", loss=0.5)
        log.log(6, "val", oiou_model=0.5, oiou_original=float("nan"), num=7)
    assert status_of(run)["progress"]["validation"] == "oIoU 0.625 at step 5"
    assert "  validation: oIoU 0.625 at step 5" in format_status(status_of(run)).splitlines()
    (run / "done.json").write_text("{}")
    assert status_of(run)["state"] == "done"


def test_a_grid_and_its_cells(tmp_path):
    grid = tmp_path / "grid"
    for seed in (1, 2, 3):
        (grid / "l2l" / "fraction-0.1" / f"seed-{seed}").mkdir(parents=True)
    one, two, _ = sorted((grid / "l2l" / "fraction-0.1").iterdir())
    (one / "eval").mkdir()
    (one / "eval" / "val.json").write_text("{}")
    (one / "done.json").write_text("{}")
    (two / "failed.json").write_text(json.dumps({"reason": "collapsed"}))
    submitted(grid / "jobs", 1, "ablate", "5", [0])
    task(grid / "jobs", "ablate", 0, "5", "ended", 1, said="error: 1 of 3 failed")
    status = status_of(grid, NOW)
    assert (status["kind"], status["state"]) == ("grid", "failed")
    assert status["progress"]["cells"] == {
        "l2l/fraction-0.1/seed-1": "done",
        "l2l/fraction-0.1/seed-2": "failed: collapsed",
        "l2l/fraction-0.1/seed-3": "not begun",
    }
    task(grid / "jobs", "ablate", 0, "5", "ended", 0)
    assert status_of(grid, NOW)["state"] == "done"


def test_a_grid_that_no_batch_job_runs(tmp_path, trainer):
    """Before its first call has ended there is no table; a cell's owner tells whether somebody is at it."""
    grid = tmp_path / "grid"
    cell, other = (grid / "l2l" / "fraction-0.1" / f"seed-{seed}" for seed in (1, 2))
    cell.mkdir(parents=True)
    assert (status_of(grid)["kind"], status_of(grid)["state"]) == ("grid", "unfinished")
    (cell / "owner.json").write_text(json.dumps(trainer))
    assert status_of(grid)["state"] == "running"
    (cell / "owner.json").write_text(json.dumps(trainer | {"host": "elsewhere"}))
    assert status_of(grid)["state"] == "unfinished"
    (cell / "owner.json").write_text(json.dumps(trainer))
    (cell / "config.json").write_text(json.dumps({"config": {"steps": 9}}))
    assert status_of(cell)["state"] == "running"
    (cell / "done.json").write_text("{}")  # and is scored by the same process
    assert status_of(cell)["state"] == "running"
    (cell / "done.json").unlink()
    os.kill(trainer["pid"], signal.SIGKILL)
    wait_until(
        lambda: not Path(f"/proc/{trainer['pid']}/cmdline").read_bytes()
    )  # dead, and not yet waited for
    assert status_of(grid)["state"] == status_of(cell)["state"] == "unfinished"
    other.mkdir()
    (other / "failed.json").write_text(json.dumps({"reason": "collapsed"}))
    assert status_of(grid)["state"] == "failed"
    (other / "failed.json").unlink()
    other.rmdir()
    (grid / "table.json").write_text(json.dumps({"unfinished": []}))
    assert status_of(grid)["state"] == "unfinished"  # the table is of an earlier call, with fewer cells
    (cell / "eval").mkdir()
    for file in (cell / "done.json", cell / "eval" / "val.json"):
        assert status_of(grid)["state"] == "unfinished"
        file.write_text("{}")
    assert status_of(grid)["state"] == "done"


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_submissions_are_read_once(tmp_path, monkeypatch):
    """Between two readings jobs may be submitted: kind and tasks are of one."""
    submitted(tmp_path / "run" / "jobs", 1, "train", "7", [0])
    asked = []
    monkeypatch.setattr(
        "shared.cluster.status.read_submitted", lambda folder: asked.append(folder) or read_submitted(folder)
    )
    assert status_of(tmp_path / "run")["kind"] == "run" and asked == [tmp_path / "run" / "jobs"]


def test_a_model_is_no_run(tmp_path):
    for name, config, files in (
        ("swin", {"model_type": "swin"}, ()),
        ("model", {"vision": {}}, ("model.safetensors",)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        for file in files:
            (folder / file).write_bytes(b"")
        with pytest.raises(DataError, match=f"{name}: neither a store .* nor a run or grid"):
            status_of(folder)


def test_what_is_nothing_or_damaged_is_named(tmp_path):
    with pytest.raises(DataError, match="neither a store"):
        status_of(tmp_path)
    with pytest.raises(DataError, match=r"none\.zarr: not there"):
        status_of(tmp_path / "none.zarr")
    jobs = tmp_path / "run" / "jobs"
    submitted(jobs, 1, "train", "7", [0])
    (jobs / "train.0.json").write_text("{")
    (tmp_path / "grid" / "l2l" / "fraction-0.1" / "seed-1").mkdir(parents=True)
    for damaged in (tmp_path / "grid/table.json", tmp_path / "grid/l2l/fraction-0.1/seed-1/failed.json"):
        damaged.write_text("{")
        with pytest.raises(DataError, match=f"{damaged.name}: cannot be read"):
            status_of(tmp_path / "grid")
    with pytest.raises(DataError, match=r"train\.0\.json: damaged"):
        status_of(tmp_path / "run")
    with (jobs / "submitted.jsonl").open("a") as file:
        file.write('{"name": "train"}\n')
    with pytest.raises(DataError, match=r"submitted\.jsonl, line 2: not a submitted job"):
        status_of(tmp_path / "run")
