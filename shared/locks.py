"""Locks between processes, of one machine or of several that share a file system: one file each, held by `flock`."""

import errno
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from shared.errors import DataError

PATIENCE_S = 120.0
"""Seconds a lock is waited for; whatever is written under one takes less."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold a lock between processes; the kernel frees it when its holder dies.

    Args:
        path: Its file, made if it is not there.
        patience_s: Seconds to wait for it; 0 asks once.

    Raises:
        DataError: Another process has held it for that long.
    """
    end = time.monotonic() + patience_s
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not try_lock(handle, path):
            if time.monotonic() > end:
                waited = f" for {patience_s:.0f} s" if patience_s else ", which writes here"
                raise DataError(f"{path}: held by another process{waited}")
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def try_lock(handle: int, path: Path) -> bool:
    """Take a lock if it is free.

    Args:
        handle: Its file, open; the lock is held until it is closed.
        path: The same file, for messages.

    Returns:
        Whether it is ours now. On a file system without locks there is nothing to wait for: True, and a warning.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_without_locks(path.parent, error.strerror)
    return True


@cache
def _warn_without_locks(folder: Path, reason: str) -> None:
    """Say once a process and folder what is not guarded."""
    print(
        f"warning: {folder}: this file system has no locks ({reason}): of two processes that write here at the same "
        "moment neither waits for the other; start one at a time",
        file=sys.stderr,
        flush=True,
    )
