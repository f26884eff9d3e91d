"""Reading ahead ends when the run does, however that ends: real readers, in a process of its own."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shared.errors import DataError
from stage2_train.loader import iterate

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys, time
from shared.errors import DataError
from stage2_train.loader import iterate


def read(key):
    if key == 3 and sys.argv[1] == "a reader refuses":
        raise DataError("photos.jsonl, line 3: images/0003.jpg is damaged")
    if key == 3 and sys.argv[1] == "a reader breaks":
        raise RuntimeError("no more memory in a reader")
    if key == 4 and sys.argv[1] == "told to stop in a long read":
        time.sleep(1000)
    return key


def main():
    for key in iterate(read, range(40), workers=2, prefetch=2):
        if key == 2 and sys.argv[1] == "the step breaks":
            raise RuntimeError("CUDA out of memory")
        if key == 2 and sys.argv[1].startswith("told to stop"):
            sys.exit(75)


if __name__ == "__main__":
    main()
"""

ENDS = {
    "a reader refuses": (1, "shared.errors.DataError: photos.jsonl, line 3: images/0003.jpg is damaged"),
    "a reader breaks": (1, "RuntimeError: no more memory in a reader"),
    "the step breaks": (1, "RuntimeError: CUDA out of memory"),
    "told to stop": (75, ""),
    "told to stop in a long read": (75, ""),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_process_ends_with_its_run(how: str, tmp_path: Path) -> None:
    """Readers do not see SIGTERM: whoever ended them by it, and waited, would wait for ever."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # On a busy machine Python's own cleaner may come after a reader that has cleaned up, and says so.
    quiet = {"PYTHONWARNINGS": "ignore:resource_tracker"}
    done = subprocess.run(
        [sys.executable, str(script), how],
        env={"PYTHONPATH": str(ROOT), **quiet},
        capture_output=True,
        text=True,
        timeout=120,
    )
    status, last = ENDS[how]
    assert done.returncode == status, done.stderr
    assert (done.stderr.strip().splitlines() or [""])[-1] == last


def _refuse(key: int) -> int:
    raise DataError(f"row {key}: damaged")


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (0, 2), (1, 2)])
def test_a_reader_says_why_in_its_own_words(workers: int, prefetch: int) -> None:
    """However it is read ahead."""
    with pytest.raises(DataError, match="^row 5: damaged$"):
        next(iterate(_refuse, range(5, 9), workers=workers, prefetch=prefetch))


def test_a_thread_reads_no_further_ahead_than_told_and_ends_with_its_reader() -> None:
    """Two batches wait, and one more is in hand until there is room for it."""
    read: list[int] = []
    batches = iterate(lambda key: read.append(key) or key, range(1000), workers=0, prefetch=2)
    assert [next(batches), next(batches)] == [0, 1]
    limit = time.monotonic() + 30
    while len(read) < 5 and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.3)  # longer than it waits for room at a time
    assert read == [0, 1, 2, 3, 4]
    batches.close()
    assert read == [0, 1, 2, 3, 4] and "batch reader" not in {thread.name for thread in threading.enumerate()}


def test_a_thread_ends_before_python_does_whoever_holds_it() -> None:
    """Torch that is at work in it then would end the process by SIGABRT."""
    code = (
        "import atexit, threading\n"
        "from stage2_train.loader import iterate\n"
        "names = lambda: print([thread.name for thread in threading.enumerate()], flush=True)\n"
        "atexit.register(names)\n"
        "batches = iterate(lambda key: key, range(9), workers=0, prefetch=2)\n"
        "next(batches)\n"
        "names()\n"
        "raise RuntimeError('an error that keeps the generator')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    before, after = done.stdout.splitlines()
    assert done.returncode == 1 and "batch reader" in before and "batch reader" not in after


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_was_read_before_an_error_comes_before_it(prefetch: int) -> None:
    """Whatever the error; and nothing is read before it is asked for where nothing is read ahead."""
    read: list[int] = []

    def breaks(key: int) -> int:
        read.append(key)
        if key == 3:
            raise MemoryError("no more of it")
        return key

    batches = iterate(breaks, range(9), workers=0, prefetch=prefetch)
    assert [next(batches) for _ in range(3)] == [0, 1, 2] and (prefetch or read == [0, 1, 2])
    with pytest.raises(MemoryError, match="no more of it"):
        next(batches)
    assert read == [0, 1, 2, 3]


def test_signals_are_held_only_while_readers_start() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    batches = iterate(abs, range(3), workers=1, prefetch=0)
    assert next(batches) == 0 and signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert list(batches) == [1, 2]


def test_two_at_once_end_apart() -> None:
    """A validation reads while the training's readers wait."""
    outer = iterate(abs, range(6), workers=1, prefetch=1)
    assert next(outer) == 0
    assert list(iterate(abs, range(3), workers=1, prefetch=1)) == [0, 1, 2]
    assert list(outer) == [1, 2, 3, 4, 5]
