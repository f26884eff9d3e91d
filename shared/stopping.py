"""Being told to stop: SIGTERM, and SIGUSR1, with which batch jobs give notice, end a run in order.

Ctrl-C (SIGINT) and a terminal that is gone (SIGHUP) end a training in order as well, a second Ctrl-C at once;
everything else they end at once.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from shared.runlog import say

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Sent by batch systems, and from one process of ours to another."""

STOPPED = 75
"""Exit status of a command, and of a job, that was stopped in order and wants to be started again."""


@contextmanager
def stop_flag(
    *, interrupt: bool = False, on_stop: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGUSR1 has arrived; earlier handlers are put back afterwards.

    Python gives signals to the main thread alone: in any other nothing is caught, and the answer stays no.

    Args:
        interrupt: SIGHUP and the first SIGINT count too; a second one is handled as before. What is ignored, as behind
            `nohup`, stays so.
        on_stop: Called in the handler.
    """
    asked = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked
        return
    persons = (signal.SIGHUP, signal.SIGINT) if interrupt else ()
    numbers = (*STOP_SIGNALS, *(one for one in persons if signal.getsignal(one) is not signal.SIG_IGN))

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])
        on_stop()

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
