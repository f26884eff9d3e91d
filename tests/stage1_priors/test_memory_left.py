"""Memory that is left on a machine, in a job and in a container, as their files say."""

import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from stage1_priors import memory_left
from stage1_priors.memory_left import free_gb, require_memory

GIB = 2**30


def drawn(root, groups, *, version=2, place="/job/step", available=32):
    """A machine: its groups by folder, as (limit, usage, files kept in memory), bytes or text."""
    limit, usage, kept, mount = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory/"),
        2: ("memory.max", "memory.current", "inactive_file", ""),
    }[version]
    files = {
        "proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {available * 2**20} kB\n",
        "proc/self/cgroup": f"0::{place}\n"
        if version == 2
        else f"5:cpu,cpuacct:/else\n4:memory:{place}\n0::/\n",
    }
    for folder, (most, taken, files_kept) in groups.items():
        where = f"sys/fs/cgroup/{mount}{folder}"
        files |= {f"{where}/{limit}": f"{most}\n", f"{where}/{usage}": f"{taken}\n"}
        files[f"{where}/memory.stat"] = f"anon 77\n{kept} {files_kept}\n"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("version", "groups", "left"),
    [
        (2, {}, 32),
        (2, {"job/step": (8 * GIB, 3 * GIB, 0)}, 5),
        (2, {"job/step": (8 * GIB, 7 * GIB, 4 * GIB)}, 5),  # files that were read make way
        (2, {"job/step": ("max", GIB, 0), "job": (6 * GIB, 4 * GIB, 0)}, 2),  # Slurm's limit is the job's
        (2, {"job/step": ("max", GIB, 0), "job": ("max", GIB, 0)}, 32),
        (2, {"": (4 * GIB, GIB, 0)}, 3),  # a container, whose own name is not there
        (2, {"job": (GIB, 2 * GIB, 0)}, 0),
        (1, {"job/step": (8 * GIB, 3 * GIB, GIB)}, 6),
        (1, {"job/step": (9223372036854771712, GIB, 0), "job": (7 * GIB, 3 * GIB, 0)}, 4),
        (1, {"": (9223372036854771712, GIB, 0)}, 32),
    ],
)
def test_the_least_of_machine_and_groups_counts(tmp_path, version, groups, left):
    assert free_gb(drawn(tmp_path, groups, version=version)) == pytest.approx(left)


def test_where_nobody_says_nothing_is_known(tmp_path):
    assert free_gb(tmp_path) is None


def test_this_machine_says_what_is_left():
    assert free_gb() > 0.1


def test_more_workers_than_memory_are_refused(config, monkeypatch):
    """Their caches are known before they start."""
    monkeypatch.setattr(memory_left, "free_gb", lambda: 14.0)
    own = apply_overrides(config, ["engine.image_gb=2", "engine.image_cache_gb=0.25", "engine.kv_cache_gb=4"])
    require_memory(own, 2, on_gpus=False)
    with pytest.raises(
        DataError, match=r"3 workers take 18.8 GiB .*image_gb.*kv_cache_gb\), and 14 GiB are left"
    ):
        require_memory(own, 3, on_gpus=False)
    require_memory(own, 6, on_gpus=True)
    with pytest.raises(DataError, match=r"7 workers take 15.8 GiB .*image_cache_gb\), and"):
        require_memory(own, 7, on_gpus=True)
    require_memory(apply_overrides(own, ["engine.kind=transformers"]), 30, on_gpus=False)
