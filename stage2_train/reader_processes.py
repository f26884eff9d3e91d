"""What crosses between a training and the processes that read for it: how to read, batches, and how a reader died.

How to read travels in a file without a name, of which every reader inherits a handle. Torch would have it in the pickle
of each process: made anew for every reader, and where it outgrows a pipe (64 KB) Python starts a reader only once the
one before has imported its modules.

Tensors of batches travel through shared memory, of which containers have little (Docker: 64 MB in /dev/shm). Where
there is no more, a reader dies of SIGBUS, or torch loses the batch and the training waits for it for ever, as the
version of torch has it; here it is an error either way.
"""

import io
import mmap
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from types import FrameType
from typing import IO, Any

import torch

from shared.errors import DataError

REMEDY = (
    "batches travel through shared memory (/dev/shm), of which a container has little: give it more (docker run "
    "--ipc=host, or --shm-size=16g); or memory ran out: give the job more, or read with fewer processes "
    "(runtime.workers, of `eval` --workers; 0 reads in a thread). A script of your own that starts them needs "
    "`if __name__ == '__main__':`"
)
"""Ends every message about a reader that had no room, or died."""

_DEATH = re.compile(r"DataLoader worker \(pid.*?\d\) ([^.]*)")
"""How torch begins to say that a reader has died; after the first sentence it is advice."""


@dataclass(frozen=True)
class Refused:
    """What a reader could not read: torch would wrap the error in its traceback, of which nobody finds the cause."""

    error: DataError


class KeyedDataset(torch.utils.data.Dataset[Any]):
    """Adapter: `read(key)` as a map-style data set; in a reader process, tensors of the result are in shared memory."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __getitem__(self, key: int) -> Any:
        """The batch of `key`, or why there is none."""
        try:
            batch = self.read(key)
            if torch.utils.data.get_worker_info() is not None:
                # Torch does it in a thread of the reader, which prints what goes wrong and drops the batch.
                _Sharing().dump(batch)
            return batch
        except DataError as error:
            return Refused(DataError(*error.args))


class _Sharing(pickle.Pickler):
    """Moves the tensors of what it is given to shared memory, however deep they lie; what it writes is of no use."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), pickle.HIGHEST_PROTOCOL, buffer_callback=lambda buffer: None)

    def persistent_id(self, obj: Any) -> Any:
        """Asked about every object: move a tensor instead of writing it.

        Raises:
            DataError: There is no room.
        """
        if not isinstance(obj, torch.Tensor):
            return None
        try:
            if obj.untyped_storage().nbytes():
                obj.share_memory_()
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise DataError(f"a batch cannot be handed over: {said}; {REMEDY}") from error
        return "moved"


class FiledDataset(torch.utils.data.Dataset[Any]):
    """A data set on its way to readers that are being started; pickled once, however many there are."""

    def __init__(self, dataset: torch.utils.data.Dataset[Any]) -> None:
        """Pickle it, in memory where the system has files of memory."""
        self._file: IO[bytes]
        if sys.platform == "linux":
            self._file = os.fdopen(os.memfd_create("reader"), "w+b")
        else:
            self._file = tempfile.TemporaryFile()
        pickle.dump(dataset, self._file, pickle.HIGHEST_PROTOCOL)
        self._file.flush()

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        """In the process that is being started, it is the data set itself."""
        return _unfile, (DupFd(self._file.fileno()),)

    def close(self) -> None:
        """Let go of the file; readers that have been started keep their handles until they have read it."""
        self._file.close()


def _unfile(handle: Any) -> Any:
    with open(handle.detach(), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return pickle.loads(data)


@contextmanager
def deaths_told() -> Iterator[None]:
    """Say of a reader that dies in here, in one line, how it died and what to do.

    Raises:
        DataError: In place of torch's RuntimeError about a reader; any other passes.
    """
    try:
        yield
    except RuntimeError as error:
        found = _DEATH.match(str(error))
        if found is None:
            raise
        if isinstance(error.__cause__, DataError):  # noticed while a batch was waited for: told already
            raise error.__cause__ from None
        raise DataError(f"a process that reads batches {found[1].strip()}: {REMEDY}") from None


def tell_deaths() -> None:
    """Say it likewise where a death interrupts the main thread in the middle of a step; that stays so from here on.

    Torch raises from its handler of SIGCHLD, which it sets with its first loader of many processes.
    """
    of_torch = signal.getsignal(signal.SIGCHLD)
    if not callable(of_torch) or not getattr(of_torch, "__module__", "").startswith("torch."):
        return
    if threading.current_thread() is not threading.main_thread():
        return

    def handler(number: int, frame: FrameType | None) -> None:
        with deaths_told():
            of_torch(number, frame)

    signal.signal(signal.SIGCHLD, handler)
