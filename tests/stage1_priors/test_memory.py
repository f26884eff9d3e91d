"""Freed memory is returned although something that is still used lies behind it; a process can begin anew."""

import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from stage1_priors.memory import release_freed_memory, resident_gb


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


def test_memory_counts_what_the_process_started():
    alone = resident_gb()
    assert alone == pytest.approx(resident_mib() / 1024, rel=0.1)
    hold = "held = bytes(200 << 20); held = held.replace(b'\\0', b'1'); print(len(held), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        assert resident_gb() > alone + 0.19
        child.communicate(b"\n")


def test_a_process_that_begins_anew_keeps_its_number_arguments_and_first_environment(tmp_path):
    script = tmp_path / "begin.py"
    script.write_text(
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from stage1_priors.memory import start_anew\n"
        "log, environment = Path(sys.argv[1]), dict(os.environ)\n"
        "with log.open('a') as lines:\n"
        "    print(json.dumps([os.getpid(), sys.argv[1:], os.environ.get('SET_LATER')]), file=lines)\n"
        "os.environ['SET_LATER'] = '1'\n"
        "if len(log.read_text().splitlines()) < 3:\n"
        "    print('again')\n"
        "    start_anew(environment)\n"
    )
    repository = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(script), str(tmp_path / "log"), "a b", "--set", "x=1"]
    started = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(repository)}, stdout=subprocess.PIPE, text=True
    )
    assert started.communicate(timeout=60)[0] == "again\nagain\n" and started.returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == [[started.pid, command[2:], None]] * 3
