"""Being told to stop: SIGTERM, and SIGUSR1, with which batch jobs give notice, end a run in order; Ctrl-C at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

STOPPED = 75
"""Exit status of a command, and of a job, that was stopped in order and wants to be started again."""


@contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGUSR1 has arrived, of the main thread; earlier handlers are put back afterwards."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
