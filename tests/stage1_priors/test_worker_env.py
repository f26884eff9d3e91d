"""What each of several workers is given."""

from itertools import pairwise

import pytest

from shared.cluster.port import FIRST, NUM
from shared.errors import DataError
from stage1_priors.worker_env import (
    FIRST_PORT,
    PORTS,
    num_workers_of,
    plan_workers,
    separate_from_other_workers,
)


def test_one_worker_per_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert [num_workers_of("auto", gpus_each) for gpus_each in (1, 2, 3)] == [2, 1, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert num_workers_of("auto", 1) == 1
    assert num_workers_of("4", 2) == 4
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(DataError, match="--workers is"):
            num_workers_of(wrong, 1)


def test_each_worker_has_its_own_device_and_share_of_the_cores(tmp_path):
    def planned(num_workers, gpus, cores, gpus_each=1, **inherited):
        found = plan_workers(num_workers, gpus, gpus_each, cores, tmp_path, "store", inherited)
        assert len({worker.log for worker in found}) == num_workers
        return [worker.environment for worker in found]

    on_gpus = planned(3, ["0", "7"], 64, CUDA_VISIBLE_DEVICES="0,7")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in on_gpus] == ["0", "7", "0"]
    assert [one["OMP_NUM_THREADS"] for one in on_gpus] == ["21", "21", "22"]
    assert [one["OMP_NUM_THREADS"] for one in planned(2, [], 6)] == ["3", "3"]
    assert [one["OMP_NUM_THREADS"] for one in planned(3, [], 2)] == ["1", "1", "1"]
    assert planned(1, ["5"], 8) == [{"CUDA_VISIBLE_DEVICES": "5"}]
    own = planned(2, ["0", "1"], 8, OMP_NUM_THREADS="2", VLLM_CPU_OMP_THREADS_BIND="0-1")
    assert own == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    wide = planned(3, ["0", "7", "2", "3", "4"], 8, gpus_each=2)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in wide] == ["0,7", "2,3", "0,7"]


def test_workers_that_meet_on_a_node_have_ports_and_caches_of_their_own():
    """Workers of one array, of another that Slurm numbers after it, and without Slurm."""
    jobs = [{"SLURM_ARRAY_JOB_ID": first, "SLURM_JOB_ID": "1"} for first in ("40", "44")]
    environments = [{**job, "HOME": "/h"} for job in jobs for _ in range(4)]
    for worker, environment in enumerate(environments):
        separate_from_other_workers(worker % 4, "ab" if worker < 4 else "cd", environment)
    ports = [int(environment["VLLM_PORT"]) for environment in environments]
    assert len(set(ports)) == 8 and min(b - a for a, b in pairwise(sorted(ports))) >= PORTS
    assert all(FIRST + NUM <= port and port + PORTS <= 32_768 for port in ports)
    caches = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    assert len({environment[name] for environment in environments for name in caches}) == 24

    given = {"VLLM_CACHE_ROOT": "/scratch/vllm", "VLLM_PORT": "5", "TORCHINDUCTOR_CACHE_DIR": "/scratch/i"}
    separate_from_other_workers(2, "ab", given)
    assert given["VLLM_CACHE_ROOT"] == "/scratch/vllm/ab-2"
    assert given["TORCHINDUCTOR_CACHE_DIR"] == "/scratch/vllm/ab-2/inductor"
    assert int(given["VLLM_PORT"]) == FIRST_PORT + 2 * PORTS
