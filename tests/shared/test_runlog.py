"""The run log drops what a checkpoint has not seen; the progress line's numbers are those of a hand-set clock."""

import errno
import io
import json
import math
import sys

import numpy as np
import pytest
import torch

from shared.errors import DataError
from shared.runlog import (
    METRICS_FILE,
    ProgressBar,
    RunLog,
    duration,
    finite_or_none,
    progress,
    read_records,
    say,
)


def _lines(folder):
    return (folder / METRICS_FILE).read_text().splitlines()


def test_records_are_on_disk_before_close(tmp_path):
    log = RunLog(tmp_path / "run", tensorboard=False)
    log.log(1, "train", loss=0.5)
    assert _lines(tmp_path / "run") == ['{"step": 1, "kind": "train", "loss": 0.5}']
    log.close()
    log.close()


def test_numbers_of_every_kind_and_not_finite_ones(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.log(
            3,
            "val",
            a=np.float32(0.5),
            b=torch.tensor(2),
            c=math.nan,
            d=torch.tensor(math.inf),
            e=True,
            f=None,
        )
    assert read_records(tmp_path / METRICS_FILE) == [
        {"step": 3, "kind": "val", "a": 0.5, "b": 2, "c": None, "d": None, "e": True, "f": None}
    ]


def test_finite_or_none_goes_into_containers():
    assert finite_or_none({"x": (1.0, [math.nan]), 2: np.int64(3)}) == {"x": [1.0, [None]], "2": 3}


def test_resume_drops_later_records(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        for step in range(1, 6):
            log.log(step, "train", loss=float(step))
    with RunLog(tmp_path, tensorboard=False, resume_step=3) as log:
        log.log(4, "train", loss=40.0)
    records = read_records(tmp_path / METRICS_FILE)
    assert [(r["step"], r["kind"]) for r in records] == [
        (1, "train"),
        (2, "train"),
        (3, "train"),
        (4, "train"),
    ]
    assert records[-1]["loss"] == 40.0
    assert not list(tmp_path.glob("*.partial"))


def test_a_fresh_start_drops_the_log_of_a_run_that_left_no_checkpoint(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.log(7, "train", loss=1.0)
    with RunLog(tmp_path, tensorboard=False, resume_step=0):
        pass
    assert read_records(tmp_path / METRICS_FILE) == []


def test_without_resume_step_the_log_is_appended_to(tmp_path):
    for step in (1, 2):
        with RunLog(tmp_path, tensorboard=False) as log:
            log.log(step, "train")
    assert [r["step"] for r in read_records(tmp_path / METRICS_FILE)] == [1, 2]


def test_a_torn_last_line_is_left_out_and_healed_on_resume(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 1, "kind": "train"}\n{"step": 2, "ki')
    assert [r["step"] for r in read_records(path)] == [1]
    with RunLog(tmp_path, tensorboard=False, resume_step=2) as log:
        log.log(3, "train")
    assert [r["step"] for r in read_records(path)] == [1, 3]


@pytest.mark.parametrize("bad", ["{torn", "[1]", '{"kind": "train"}'])
def test_a_bad_line_inside_is_named(tmp_path, bad):
    path = tmp_path / METRICS_FILE
    path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
    with pytest.raises(DataError, match="line 2"):
        read_records(path)


def test_a_missing_log_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="none.jsonl"):
        read_records(tmp_path / "none.jsonl")


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path) as log:
        log.log(2, "train", loss=0.25, note="text", broken=math.nan)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(2, 0.25)]
    assert json.loads(_lines(tmp_path)[0])["broken"] is None


class _Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_plain_lines_come_every_ten_seconds_and_at_the_end():
    clock, stream = _Clock(), io.StringIO()
    with ProgressBar(100, "train", initial=20, stream=stream, clock=clock) as bar:
        for _ in range(40):
            clock.now += 0.5
            bar.update(2)
    assert stream.getvalue().splitlines() == [
        "train: 60/100 steps (60%), 4.00 steps/s, 10 s left",
        "train: 100/100 steps (100%), 4.00 steps/s, took 20 s",
    ]


def test_slow_work_is_told_in_seconds_per_unit():
    clock = _Clock()
    bar = ProgressBar(10, "priors", "pair", stream=io.StringIO(), clock=clock)
    assert bar.line() == "priors: 0/10 pairs (0%)"
    clock.now = 8.0
    bar.update(2)
    assert bar.line() == "priors: 2/10 pairs (20%), 4.00 s/pair, 32 s left"


def test_quiet_says_nothing(capsys):
    assert list(progress([1, 2], 2, "x", quiet=True)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_progress_ends_with_a_line_on_standard_error(capsys):
    assert list(progress("ab", 2, "read", unit="file")) == ["a", "b"]
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("read: 2/2 files (100%)")


class Gone(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_work_goes_on_where_nobody_reads_its_progress(monkeypatch, is_terminal):
    stream = Gone()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    say("hello")
    assert list(progress(range(3), 3, "steps")) == [0, 1, 2]


def test_the_first_error_is_told_not_that_of_closing(tmp_path, monkeypatch):
    def closed(self):
        self._file.close()
        raise OSError("closing failed, too")

    monkeypatch.setattr(RunLog, "close", closed)
    for raised, told in ((OSError("disk is full"), "disk is full"), (None, "closing failed")):
        with (
            pytest.raises(OSError, match=told),
            RunLog(tmp_path, tensorboard=False, resume_step=0),
        ):
            if raised is not None:
                raise raised


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with ProgressBar(2, "train", stream=stream) as bar:
        bar.desc = "train [half]"
        bar.update(2)
    assert "train [half]: 100%" in stream.getvalue() and "2/2" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
