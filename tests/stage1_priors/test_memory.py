"""Freed memory is returned although something that is still used lies behind it."""

import platform
import resource
from pathlib import Path

import pytest

from stage1_priors.memory import release_freed_memory


def resident_mib() -> float:
    """Pages of this process in memory, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_blocks_below_a_used_one_are_returned():
    blocks = [bytes([i % 255 + 1]) * 60_000 for i in range(4_000)]  # below the size that is mapped by itself
    used = blocks[::100]
    full = resident_mib()
    del blocks
    freed = resident_mib()
    assert full - freed < 150, "the allocator returned it by itself: this test shows nothing"
    release_freed_memory()
    assert full - resident_mib() > 180
    assert all(len(set(one)) == 1 for one in used)
