"""Being told to stop: SIGTERM, and SIGUSR1, with which batch jobs give notice, end a run in order.

Ctrl-C (SIGINT) ends a training in order as well, and at once when it is pressed again; everything else it ends at once.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from shared.runlog import say

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

STOPPED = 75
"""Exit status of a command, and of a job, that was stopped in order and wants to be started again."""


@contextmanager
def stop_flag(*, interrupt: bool = False) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGUSR1 has arrived, of the main thread; earlier handlers are put back afterwards.

    Args:
        interrupt: The first SIGINT counts too; a second one is handled as before. Not where SIGINT is ignored.
    """
    asked = False
    numbers: tuple[signal.Signals, ...] = STOP_SIGNALS
    if interrupt and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers = (*STOP_SIGNALS, signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def said_on_interrupt(kept: str, quiet: bool = False) -> Iterator[None]:
    """On Ctrl-C, say what is kept and that the same command goes on; the interrupt is passed on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: {kept}; the same command goes on", quiet)
        raise
