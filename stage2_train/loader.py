"""Reads batches ahead of the training step: in a thread, or in worker processes.

A batch is a pure function of its key, so both ways give the same batches in the same order.
"""

import atexit
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch

from shared.stopping import STOP_SIGNALS
from stage2_train.reader_processes import FiledDataset, KeyedDataset, Refused, deaths_told, tell_deaths

T = TypeVar("T")

_HELD = (*STOP_SIGNALS, signal.SIGINT, signal.SIGHUP)


def iterate(read: Callable[[int], T], keys: range, *, workers: int, prefetch: int) -> Iterator[T]:
    """Yield `read(key)` for every key, in order, reading ahead.

    Args:
        read: A pure function of the key; picklable where `workers` > 0.
        keys: The keys.
        workers: Worker processes (spawned, so that no open store crosses a fork); 0 uses one thread.
        prefetch: Batches read ahead (per worker); 0 with no workers reads in the calling thread.

    Raises:
        DataError: A batch could not be read, the reader's own; or a worker process died, or could not hand it over.
    """
    if workers:
        yield from _in_processes(read, keys, workers, prefetch)
    elif prefetch:
        yield from _threaded(read, keys, prefetch)
    else:
        yield from map(read, keys)


def _in_processes(read: Callable[[int], T], keys: range, workers: int, prefetch: int) -> Iterator[T]:
    with closing(FiledDataset(KeyedDataset(read))) as dataset, _stop_signals_held():
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            sampler=list(keys),
            num_workers=workers,
            prefetch_factor=max(prefetch, 1),
            multiprocessing_context="spawn",
        )
        batches: Any = iter(loader)
    # An error may keep this generator alive to the end of the interpreter. Then torch and multiprocessing send
    # readers SIGTERM, which they do not see, and wait for ever; what is registered last is called first.
    end = partial(_end, batches)
    atexit.register(end)
    tell_deaths()
    try:
        with deaths_told():
            for batch in batches:
                if isinstance(batch, Refused):
                    raise batch.error
                yield batch
    finally:
        atexit.unregister(end)
        end()


def _end(batches: Any) -> None:
    """End the readers of a loader's iterator, and let torch know; nothing happens a second time."""
    batches._shutdown_workers()
    for reader in batches._workers:
        if reader.is_alive():  # in the middle of a long read, deaf to SIGTERM
            reader.kill()


@contextmanager
def _stop_signals_held() -> Iterator[None]:
    """What is started in here never sees SIGTERM, SIGUSR1, SIGINT or SIGHUP, and this process sees them afterwards.

    A launcher, Slurm, Ctrl-C or a terminal that goes tells every process of a training to stop; readers that died of
    it would end the trainer in the middle of its step. They end with the loader, or once their parent is gone.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        resource_tracker.ensure_running()  # a process too; where it starts one, Python lets some through again
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _threaded(read: Callable[[int], T], keys: range, prefetch: int) -> Iterator[T]:
    results: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=prefetch)
    stopped = threading.Event()

    def put(item: tuple[bool, Any]) -> None:
        while not stopped.is_set():
            try:
                return results.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for key in keys:
                if stopped.is_set():
                    return
                put((True, read(key)))
        except BaseException as error:  # handed to the consumer, which raises it
            put((False, error))

    def end() -> None:
        stopped.set()
        thread.join()

    thread = threading.Thread(target=work, name="batch reader", daemon=True)
    thread.start()
    # An error may keep this generator alive, and torch may not be at work in a thread when Python ends.
    atexit.register(end)
    try:
        for _ in keys:
            is_batch, value = results.get()
            if not is_batch:
                raise value
            yield value
    finally:
        atexit.unregister(end)
        end()
