"""What crosses between a training and its readers, with real processes; `test_loader` is about their order and end."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.errors import DataError
from stage2_train.loader import iterate
from stage2_train.reader_processes import FiledDataset, KeyedDataset, deaths_told

ROOT = Path(__file__).parents[2]

REMEDIES = ("/dev/shm", "--ipc=host", "--shm-size", "runtime.workers", "memory")


class Counted:
    """Counts how often it is pickled."""

    times = 0

    def __getstate__(self) -> dict[str, Any]:
        Counted.times += 1
        return {"payload": bytes(2**20)}

    def __call__(self, key: int) -> tuple[int, int]:
        return key, os.getpid()


def test_how_to_read_is_pickled_once_for_all_readers() -> None:
    Counted.times = 0
    read = list(iterate(Counted(), range(9), workers=3, prefetch=1))
    assert Counted.times == 1
    assert [key for key, _ in read] == list(range(9)) and len({process for _, process in read}) == 3


def test_no_process_is_started_with_more_than_a_pipe_takes() -> None:
    """Else Python waits until it has imported its modules before the next one is started."""
    dataset = FiledDataset(KeyedDataset(Counted()))
    assert len(ForkingPickler.dumps(dataset)) < 1000
    dataset.close()


def _dies(number: int, at: int, key: int) -> int:
    if key == at:
        os.kill(os.getpid(), number)
        time.sleep(60)
    return key


def _one_line(told: pytest.ExceptionInfo[DataError]) -> str:
    text = str(told.value)
    assert "\n" not in text and all(remedy in text for remedy in REMEDIES)
    return text


@pytest.mark.parametrize(("number", "name"), [(signal.SIGBUS, "Bus error"), (signal.SIGKILL, "Killed")])
def test_a_reader_that_dies_while_it_is_waited_for(number: signal.Signals, name: str) -> None:
    with pytest.raises(
        DataError, match=f"^a process that reads batches is killed by signal: {name}: "
    ) as told:
        list(iterate(partial(_dies, number, 1), range(4), workers=1, prefetch=1))
    _one_line(told)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGBUS, "Bus error"), (signal.SIGKILL, "Killed")])
def test_a_reader_that_dies_in_the_middle_of_a_step(number: signal.Signals, name: str) -> None:
    """Torch raises from its handler of SIGCHLD, wherever that finds the main thread."""
    batches = iterate(partial(_dies, number, 2), range(9), workers=1, prefetch=2)
    with pytest.raises(DataError, match=f"is killed by signal: {name}: ") as told:
        for _ in batches:
            time.sleep(120)
    _one_line(told)
    batches.close()
    assert list(iterate(abs, range(2), workers=1, prefetch=1)) == [0, 1]  # others are read by still


@pytest.mark.parametrize(
    ("said", "how"),
    [
        (
            "DataLoader worker (pid 7) exited unexpectedly with exit code 1. Details are lost.",
            "with exit code 1: ",
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "exited unexpectedly: "),
    ],
)
def test_further_ways_in_which_torch_says_it(said: str, how: str) -> None:
    with pytest.raises(DataError, match=how) as told, deaths_told():
        raise RuntimeError(said)
    _one_line(told)


def test_what_has_been_told_is_not_told_worse() -> None:
    """Torch, waiting for a batch, catches what its own handler raises."""
    with pytest.raises(DataError, match="^as it was$"), deaths_told():
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly") from DataError("as it was")
    with pytest.raises(RuntimeError, match="^CUDA out of memory$"), deaths_told():
        raise RuntimeError("CUDA out of memory")


class NoRoom(torch.Tensor):
    """Cannot be shared."""

    def share_memory_(self) -> Any:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space\nTraceback"
        )


def _nested(key: int) -> dict[str, Any]:
    return {"part": (torch.zeros(3).as_subclass(NoRoom), "text")}


def test_a_batch_for_which_there_is_no_room() -> None:
    """Torch would print this in the reader, and let the training wait."""
    with pytest.raises(DataError, match="cannot be handed over: unable to allocate.*No space; ") as told:
        next(iterate(_nested, range(2), workers=1, prefetch=1))
    _one_line(told)


def _various(key: int) -> dict[str, Any]:
    shared = torch.arange(6.0)
    return {
        "empty": torch.zeros(0, 3),
        "whole": shared,
        "views": [shared[:3], shared[3:]],
        "array": np.arange(3),
    }


def test_tensors_arrive_as_they_were() -> None:
    (got,) = iterate(_various, range(1), workers=1, prefetch=1)
    assert got["whole"].is_shared() and got["empty"].shape == (0, 3)
    assert [one.tolist() for one in got["views"]] == [[0, 1, 2], [3, 4, 5]]
    assert got["whole"].tolist() == list(range(6)) and got["array"].tolist() == [0, 1, 2]


FULL = """
import torch
from stage2_train.loader import iterate


def read(key):
    return torch.zeros(2**20)


if __name__ == "__main__":
    for batch in iterate(read, range(9), workers=1, prefetch=2):
        pass
"""


def test_a_container_without_room(tmp_path: Path) -> None:
    """The real thing: 1 MB of /dev/shm, in a name space of our own."""
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no name spaces here")
    script = tmp_path / "script.py"
    script.write_text(FULL)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && exec '{sys.executable}' '{script}'"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("shared.errors.DataError: "), done.stderr
    assert all(remedy in last for remedy in REMEDIES)
