"""A second start on a run's folder while the first lives: the first ends, and the run is as if it had been alone."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import DataError
from shared.json_files import write_json
from shared.runlog import read_records
from stage2_train import training_run as module
from stage2_train.ablate_cell import hold_lock
from stage2_train.owner import OWNER_FILE, RunOwner
from stage2_train.run_identity import run_record
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config
from tests.stage2_train.test_train import RUNTIME, assert_same_run

ROOT = Path(__file__).parents[2]
STEPS = 6

EARLIER = """
import sys, time
from pathlib import Path
from shared.errors import DataError
from stage2_train import training_run as module
from stage2_train.train import train
from tests.stage2_train.test_owner import config_of

root, out, go_on = map(Path, sys.argv[1:4])
saves, real = sys.argv[4] == "at a save", module.save_checkpoint
steps, step = 0, module.train_step

def save(folder, step, *rest, **named):
    if saves and step == 4:
        wait()
    return real(folder, step, *rest, **named)

def counted(*args, **named):
    global steps
    result = step(*args, **named)
    steps += 1
    if not saves and steps == 3:
        wait()
    return result

def wait():
    print("waiting", flush=True)
    while not go_on.exists():
        time.sleep(0.02)

module.save_checkpoint, module.train_step = save, counted
try:
    train(config_of(root), out, quiet=True)
except DataError as error:
    sys.exit(f"error: {error}")
"""
"""A training that stops still, in a step or in the middle of writing a checkpoint, until a file appears."""


def config_of(root):
    return mini_config(root, steps=STEPS, runtime=RUNTIME)


@pytest.fixture(scope="module")
def whole(mini_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    train(config_of(mini_root), out, quiet=True)
    return out


@pytest.fixture
def earlier(mini_root, tmp_path):
    """Start the training above on `tmp_path / "run"`; gives its process once it stands still."""
    started = []

    def start(where):
        command = [
            sys.executable,
            "-c",
            EARLIER,
            *map(str, (mini_root, tmp_path / "run", tmp_path / "go")),
            where,
        ]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "waiting\n", process.stderr.read()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_later_start_goes_on_and_the_earlier_one_ends(earlier, whole, mini_root, tmp_path, monkeypatch):
    """The earlier one wakes in the midst of the later one's steps."""
    run, process = tmp_path / "run", earlier("in a step")
    real, ended = module.train_step, []

    def counted(*args, **named):
        if not ended:
            (tmp_path / "go").touch()
            ended.append(process.communicate(timeout=120)[1])
        return real(*args, **named)

    monkeypatch.setattr(module, "train_step", counted)
    assert train(config_of(mini_root), run, quiet=True)["step"] == STEPS
    assert process.returncode == 1 and f"{run}: taken over by process" in ended[0]
    assert [
        record["step"] for record in read_records(run / "metrics.jsonl") if record["kind"] == "resume"
    ] == [2]
    assert_same_run(whole, run)


def test_a_checkpoint_that_is_being_written_is_waited_for(earlier, whole, mini_root, tmp_path, monkeypatch):
    run, process = tmp_path / "run", earlier("at a save")
    waited = []

    def sleep(seconds):
        if not waited:
            assert not (run / "checkpoints" / "step_00000004").exists()
            waited.append(seconds)
            (tmp_path / "go").touch()

    monkeypatch.setattr("shared.locks.time.sleep", sleep)
    assert train(config_of(mini_root), run, quiet=True)["step"] == STEPS
    assert waited, "the lock was free"
    assert "taken over by" in process.communicate(timeout=120)[1] and process.returncode == 1
    assert [
        record["step"] for record in read_records(run / "metrics.jsonl") if record["kind"] == "resume"
    ] == [4]
    assert_same_run(whole, run)


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path, monkeypatch):
    owner = RunOwner(tmp_path)
    owner.claim()

    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = (
        "cannot write the run's files: No space left on device; its last checkpoint .* again with --resume$"
    )
    with pytest.raises(DataError, match=said):
        with owner.writing():
            full()
    monkeypatch.setattr("stage2_train.owner.publish_file", full)
    with pytest.raises(DataError, match="No space left"):
        owner.claim()


def test_a_start_with_other_settings_does_not_take_a_run_over(mini_root, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    owner = RunOwner(run)
    owner.claim()
    other = dataclasses.replace(config_of(mini_root), seed=5)
    write_json(run / "config.json", run_record(other, "", [], None, "", 1))
    with pytest.raises(DataError, match="belongs to another run"):
        train(config_of(mini_root), run, quiet=True)
    assert not owner.lost()


def test_a_folder_has_one_owner(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    first, second = RunOwner(tmp_path), RunOwner(tmp_path)
    assert first.lost(), "nobody has claimed it"
    first.claim()
    with first.writing():
        assert not first.lost() and second.lost()
    second.claim()
    with (
        pytest.raises(DataError, match=r"taken over by process \d+ on .*, job 41; this one"),
        first.writing(),
    ):
        pass
    with second.writing():
        (tmp_path / OWNER_FILE).write_text("{")
    with pytest.raises(DataError, match=r"owner\.json: damaged"):
        second.lost()


@pytest.mark.parametrize("failures", [1, 2])
def test_an_owner_that_cannot_be_read_is_not_another_one(tmp_path, monkeypatch, failures):
    """A shared disk may lose hold of a file that is exchanged just now; read again, it says whose the folder is."""
    first, second = RunOwner(tmp_path), RunOwner(tmp_path)
    first.claim()
    second.claim()
    real, refused = Path.read_text, []

    def stale(path, **named):
        if len(refused) < failures:
            refused.append(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, **named)

    monkeypatch.setattr(Path, "read_text", stale)
    assert first.lost() is (failures == 1) and len(refused) == failures
    assert first.lost() and not second.lost()


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def no_locks(request, monkeypatch):
    """What a file system that is mounted without locks answers."""

    def refuse(*args):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("shared.locks.fcntl.flock", refuse)
    return os.strerror(request.param)


def test_without_locks_a_run_still_has_one_owner_and_it_is_said_once(no_locks, tmp_path, capsys):
    first, second = RunOwner(tmp_path), RunOwner(tmp_path)
    first.claim()
    with first.writing():
        assert json.loads((tmp_path / OWNER_FILE).read_text())["token"]
    second.claim()
    with pytest.raises(DataError, match="taken over by process"), first.writing():
        pass
    said = capsys.readouterr().err
    assert (
        f"warning: {tmp_path}: this file system has no locks ({no_locks})" in said and said.count("\n") == 1
    )


def test_without_locks_a_cell_is_trained_all_the_same(no_locks, tmp_path, capsys):
    handles = [hold_lock(tmp_path / "cell") for _ in range(2)]
    for handle in handles:
        assert handle is not None
        os.close(handle)
    assert f"warning: {tmp_path / 'cell'}: this file system has no locks" in capsys.readouterr().err
