"""Memory that is left on a machine, in a job and in a container, as their files say."""

import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from stage1_priors import memory_left
from stage1_priors.job import make_job
from stage1_priors.memory_left import free_gb, require_memory, weights_gb
from stage1_priors.recipes import TINY_SAM_WEIGHTS

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
    require_memory(own, 2, on_gpus=False, model_gb=0)
    with pytest.raises(
        DataError, match=r"3 workers take 18.8 GiB .*image_gb.*kv_cache_gb\), and 14 GiB are left"
    ):
        require_memory(own, 3, on_gpus=False, model_gb=0)
    require_memory(own, 6, on_gpus=True, model_gb=0)
    with pytest.raises(DataError, match=r"7 workers take 15.8 GiB .*image_cache_gb\), and"):
        require_memory(own, 7, on_gpus=True, model_gb=0)
    require_memory(apply_overrides(own, ["engine.kind=transformers"]), 30, on_gpus=False, model_gb=0)


def test_the_weights_must_fit_as_well_where_no_gpu_holds_them(config, monkeypatch):
    monkeypatch.setattr(memory_left, "free_gb", lambda: 14.0)
    own = apply_overrides(config, ["engine.image_gb=2", "engine.image_cache_gb=1", "engine.kv_cache_gb=4"])
    require_memory(own, 1, on_gpus=False, model_gb=5)
    said = r"this run takes 7 GiB for images and caches \(.*\) and 8 GiB for the weights of the models, and 14 GiB are"
    with pytest.raises(DataError, match=said):
        require_memory(own, 1, on_gpus=False, model_gb=8)
    require_memory(own, 4, on_gpus=True, model_gb=8)
    other = apply_overrides(own, ["engine.kind=transformers"])
    require_memory(other, 1, on_gpus=False, model_gb=8)
    with pytest.raises(DataError, match="2 workers take 16 GiB for the weights of the models, and 14 GiB"):
        require_memory(other, 2, on_gpus=False, model_gb=8)


@pytest.mark.parametrize(
    ("stored", "dtype", "gib"),
    [("bfloat16", "bfloat16", 5), ("bfloat16", "float32", 10), ("float32", "bfloat16", 2.5)],
)
def test_weights_take_the_size_of_their_files_in_the_format_asked_for(tmp_path, stored, dtype, gib):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(5 * GIB)  # takes no room on the disk
    (tmp_path / "config.json").write_text(f'{{"dtype": "{stored}"}}')
    assert weights_gb(tmp_path, dtype) == pytest.approx(gib)


def test_both_models_of_a_run_are_counted(config):
    sam = apply_overrides(config, ["proposer.kind=sam2", f"proposer.path={TINY_SAM_WEIGHTS}"])
    both, one = make_job(sam).weights_gb, make_job(config).weights_gb
    assert both - one == pytest.approx(weights_gb(TINY_SAM_WEIGHTS, "float32"))
