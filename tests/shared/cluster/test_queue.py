"""Asking the queue; a real one answers in tests/cluster."""

import subprocess

import pytest

from shared.cluster import queue as module
from shared.cluster.queue import ask_queue


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A program of that name with a given answer; it writes down how it was called."""

    def make(text="", error="", status=0):
        program = tmp_path / "squeue"
        lines = [
            f"printf '%s' \"$*\" >{tmp_path}/said",
            f"printf '%b' '{text}'",
            f"printf '%b' '{error}' >&2",
        ]
        program.write_text("\n".join(["#!/bin/sh", *lines, f"exit {status}"]))
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return make


def test_tasks_are_told_apart_and_another_clusters_jobs_left_out(squeue, tmp_path):
    squeue(
        "7|0|PENDING|Priority|/a b/priors.sh\\n7|3|RUNNING|None|/a b/priors.sh 1001\\n"
        "7|4|RUNNING|None|/a b/priors.sh-of-others\\n"
        "8|N/A|PENDING|JobHeldUser|/other/verify.sh\\n9|N/A|CANCELLED|None|/a b|c/verify.sh\\n"
    )
    answer = ask_queue({"7": "/a b/priors.sh", "8": "/a b/verify.sh", "9": "/a b|c/verify.sh"})
    assert answer.problem == "" and answer.found == {
        ("7", 0): ("PENDING", "Priority"),
        ("7", 3): ("RUNNING", "None"),
        ("9", 0): ("CANCELLED", "None"),
    }
    said = (tmp_path / "said").read_text().split()
    assert {"--jobs=7,8,9", "--array", "--states=all"} <= {*said}  # a line a task, and jobs that have ended


def test_what_a_site_says_besides_is_left_out(squeue):
    squeue(
        "welcome | to the cluster\\n\\n7|0|PENDING|Priority|/s.sh\\na | b | c | d\\n*** maintenance on Monday ***\\n"
    )
    assert ask_queue({"7": "/s.sh"}).found == {("7", 0): ("PENDING", "Priority")}


def test_a_job_it_does_not_know_is_no_problem(squeue):
    squeue(error="slurm_load_jobs error: Invalid job id specified\\n", status=1)
    answer = ask_queue({"7": "/s.sh"})
    assert answer.problem == "" and answer.found == {}


def test_a_queue_that_does_not_answer_is_named(squeue, monkeypatch):
    squeue(error="loading\\nUnable to contact slurm controller\\n", status=1)
    assert ask_queue({"7": "/s.sh"}).problem == "squeue: Unable to contact slurm controller"
    squeue(status=3)
    assert ask_queue({"7": "/s.sh"}).problem == "squeue: exit status 3"

    def late(command, **options):
        assert options["timeout"] == module.PATIENCE_S
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(module.subprocess, "run", late)
    assert ask_queue({"7": "/s.sh"}).problem == "squeue: no answer within 30 s"


def test_no_queue_to_ask(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_queue({"7": "/s.sh"}).problem == "no squeue here to ask"
