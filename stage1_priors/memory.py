"""Memory that was freed goes back to the system.

A long run keeps small things (cached images, answers of the chunk before) between large ones that come and go, and
glibc's allocator holds on to what is free between them: the process grows with the pairs though nothing is kept.
"""

import ctypes


def release_freed_memory() -> None:
    """Return free pages of all the allocator's arenas to the system; takes milliseconds.

    Does nothing where the C library has no `malloc_trim` (musl, macOS).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
