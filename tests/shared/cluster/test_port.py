"""A port of a job that nobody listens on."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shared.cluster import port as module
from shared.cluster.port import FIRST, NUM, free_port
from shared.errors import DataError


def test_a_port_that_is_taken_is_passed_over():
    first = free_port(123)
    with socket.create_server(("127.0.0.1", first)):
        second = free_port(123)
    assert FIRST <= first < second < FIRST + NUM
    assert free_port(123) == first


def test_jobs_that_look_at_the_same_time_find_different_ports():
    assert len({free_port(job) for job in range(50)}) == 50


def test_none_left_is_said(monkeypatch):
    monkeypatch.setattr(module, "NUM", 1)
    with (
        socket.create_server(("", FIRST)),
        pytest.raises(DataError, match="no free port from 10000 to 10000"),
    ):
        free_port(0)


def test_a_script_reads_the_answer():
    command = [sys.executable, "-m", "shared.cluster.port", "41"]
    root = Path(__file__).resolve().parents[3]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert FIRST <= int(said) < FIRST + NUM
