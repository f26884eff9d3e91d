"""One process writes a run's folder: the one that was started last.

Slurm can lose sight of a training that lives on, when the daemon that watches it dies or its node is cut off, and
starts it again elsewhere; two trainings would then write one folder. `owner.json` says whose the folder is. A start
takes it over. The training that had it sees so after its next step and ends without writing.

Looking and writing happen under a lock, so that no write of the old owner comes after the new one has begun to read.
Where the file system has no locks (NFS or Lustre, mounted so) that is said once on standard error: a write that was
under way may then still be completed. It is one of the same run, and every file is renamed into its place whole.
"""

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.locks import locked
from shared.store.publish import disk_errors, publish_file

OWNER_FILE = "owner.json"
"""Name of the file in a run's folder."""

_WRITTEN = ("the run's files", "its last checkpoint is safe", "again with --resume")


class RunOwner:
    """The claim of this process on a run's folder.

    Args:
        run: The folder, which is there.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._mark = {
            "token": secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
        }

    def claim(self) -> None:
        """Take the folder over; waits for a write of its owner to end.

        Raises:
            DataError: Somebody has been writing for `PATIENCE_S`, or the folder cannot be written to.
        """
        with disk_errors(self._run, *_WRITTEN), locked(self._run / ".owner.lock"):
            publish_file(self._run / OWNER_FILE, (json.dumps(self._mark) + "\n").encode())

    def lost(self) -> bool:
        """Whether another process has taken the folder over; False also where its file cannot be read just now."""
        for _ in range(2):
            with suppress(OSError):  # such as the stale handle of a file that is exchanged on a shared disk
                return self._read() != self._mark
        return False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A time in which this process may write, and nobody takes the folder over.

        Raises:
            DataError: Another process has the folder (it is named), or the disk is full or forbids it.
        """
        with disk_errors(self._run, *_WRITTEN), locked(self._run / ".owner.lock"):
            found = self._read()
            if found != self._mark:
                job = f", job {found['job']}" if found.get("job") else ""
                raise DataError(
                    f"{self._run}: taken over by process {found.get('pid')} on {found.get('host')}{job}; "
                    "this one has written nothing since and ends"
                )
            yield

    def _read(self) -> dict[str, Any]:
        path = self._run / OWNER_FILE
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}  # the folder was cleared away under this process
        except ValueError as error:
            raise DataError(f"{path}: damaged, not an owner ({error})") from error
