"""What tells a run to stop, and how often."""

import os
import signal
import threading

import pytest

from shared.stopping import STOP_SIGNALS, stop_flag


@pytest.mark.parametrize("number", [*STOP_SIGNALS, signal.SIGINT, signal.SIGHUP])
def test_a_signal_sets_the_flag_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_flag(interrupt=True) as told_to_stop:
        assert not told_to_stop()
        os.kill(os.getpid(), number)
        assert told_to_stop()
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_flag(interrupt=True) as told_to_stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert told_to_stop()
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_ends_at_once_where_it_is_no_stop() -> None:
    with pytest.raises(KeyboardInterrupt), stop_flag():
        os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_flag(interrupt=True) as told_to_stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not told_to_stop()
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_is_to_happen_at_a_stop_happens_in_the_handler() -> None:
    told: list[bool] = []
    with stop_flag(on_stop=lambda: told.append(True)):
        os.kill(os.getpid(), signal.SIGTERM)
        assert told == [True]


def test_beside_the_main_thread_nothing_is_caught_and_nothing_fails() -> None:
    before, answers = signal.getsignal(signal.SIGTERM), list[bool]()

    def work() -> None:
        with stop_flag(interrupt=True) as told_to_stop:
            answers.append(told_to_stop() or signal.getsignal(signal.SIGTERM) is not before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
