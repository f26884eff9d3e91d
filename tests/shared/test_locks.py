"""Locks between processes: how long one is waited for, and file systems that have none."""

import errno
import os

import pytest

from shared import locks
from shared.errors import DataError
from shared.locks import locked


def test_a_lock_is_not_waited_for_forever(tmp_path):
    path = tmp_path / "lock"
    with (
        locked(path),
        pytest.raises(DataError, match="lock: held by another process for 0 s"),
        locked(path, patience_s=0.1),
    ):
        pass
    with locked(path, patience_s=0.1):
        pass


def test_any_other_failure_of_a_lock_is_one(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("shared.locks.fcntl.flock", refuse)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "lock"):
        pass


def test_a_file_system_without_locks_is_named_once(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("shared.locks.fcntl.flock", refuse)
    locks._warn_without_locks.cache_clear()
    for name in ("one", "two"):
        with locked(tmp_path / name):
            pass
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path}: this file system has no locks (No locks available): ")
    assert said.endswith("start one at a time\n") and said.count("\n") == 1
