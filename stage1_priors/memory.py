"""Memory of a process that asks for weeks: what is freed goes back, and one that grows all the same makes way.

A long run keeps small things (cached images, answers of the chunk before) between large ones that come and go, and
glibc's allocator holds on to what is free between them: the process grows with the pairs though nothing is kept. What
engines and their libraries leak nobody can give back but a new process.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import psutil


class MemoryFull(Exception):
    """A process holds more than it may; every shard that it had in hand is written, and some are left to do."""


def release_freed_memory() -> None:
    """Return free pages of all the allocator's arenas to the system; takes milliseconds.

    Does nothing where the C library has no `malloc_trim` (musl, macOS).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_gb() -> float:
    """Memory of this process and of all that it started, GiB; a page that several share counts for each of them."""
    own = psutil.Process()
    total = own.memory_info().rss
    for child in own.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**30


def start_anew(environment: Mapping[str, str]) -> NoReturn:
    """Become a new process with the same id and the same command; whoever waits for this one notices nothing.

    Args:
        environment: What this process was started with, before anything was set for its engine.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
