"""Several workers of one run: what each is started with, and what becomes of the store and of failures."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.cluster.port import FIRST, NUM
from shared.config import apply_overrides
from shared.errors import DataError
from shared.stopping import STOPPED
from shared.store.reader import PriorStore
from shared.store.verify import verify_store
from stage1_priors import devices, workers
from stage1_priors.devices import visible_gpus
from stage1_priors.job import describe_plan
from stage1_priors.recipes import RECIPES
from stage1_priors.run import run_priors
from stage1_priors.workers import (
    FIRST_PORT,
    PORTS,
    num_workers_of,
    plan_workers,
    require_memory,
    run_workers,
    separate_from_other_workers,
)
from tests.stage1_priors.fake_engine import FakeEngine


def test_one_worker_per_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert visible_gpus() == ["3", "5"] and num_workers_of("auto") == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == [] and num_workers_of("auto") == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,-1,2")
    assert visible_gpus() == ["1"]
    assert num_workers_of("4") == 4
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(DataError, match="--workers is"):
            num_workers_of(wrong)


def test_a_driver_that_does_not_answer_shows_no_gpu(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "TIMEOUT_S", 0.2)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for mode in (0o755, 0o644):  # one that hangs, one that may not be run
        program.chmod(mode)
        if mode == 0o644:
            monkeypatch.setenv("PATH", str(tmp_path))
        assert visible_gpus() == []


def test_each_worker_has_its_own_device_and_share_of_the_cores(tmp_path):
    def planned(num_workers, gpus, cores, **inherited):
        found = plan_workers(num_workers, gpus, cores, tmp_path, "store", inherited)
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


def test_cores_are_those_this_process_may_use(config, monkeypatch):
    """A batch job is given some cores of a node."""
    seen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 9, 17})
    monkeypatch.setattr(workers, "visible_gpus", list)

    def planned(num_workers, gpus, cores, *_):
        seen.append(cores)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "plan_workers", planned)
    with pytest.raises(KeyboardInterrupt):
        run_workers(apply_overrides(config, ["engine.kv_cache_gb=1"]), 1, ["embedded"], quiet=True)
    assert seen == [3]


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


@pytest.mark.parametrize(("environment", "apart"), [({}, False), ({"SLURM_JOB_ID": "7"}, True)])
def test_a_single_worker_is_kept_apart_in_a_job_alone(config, monkeypatch, environment, apart):
    for name in (
        "SLURM_JOB_ID",
        "VLLM_PORT",
        "VLLM_CACHE_ROOT",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    assert ("VLLM_PORT" in os.environ) == ("TRITON_CACHE_DIR" in os.environ) == apart


def test_a_complete_store_starts_nobody(config, monkeypatch):
    path = run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert run_workers(config, 2, ["embedded"], quiet=True) == path


DEATHS = {
    "an error before it starts": ("sys.exit('no more memory')", r"1: no more memory"),
    "SIGKILL in the middle of its shard": ("engine.answer_of = kill_at_100", r"-9: .*"),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_failed_worker_is_named_and_the_others_finish(config, monkeypatch, tmp_path, death):
    """Worker 1 dies; worker 0 goes through its shards. Real processes, with the engine that needs no model."""
    statement, told_status = DEATHS[death]
    monkeypatch.setattr(workers, "STAGGER_S", 0.0)
    code = (
        "import json, os, sys\n"
        "from shared.config import apply_overrides\n"
        "from stage1_priors.recipes import embedded\n"
        "from stage1_priors.run import run_priors\n"
        "from tests.stage1_priors.fake_engine import FakeEngine, random_box_answer\n"
        "engine = FakeEngine()\n"
        "def kill_at_100(request):\n"
        "    if engine.num_requests > 100:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return random_box_answer(request)\n"
        "number, settings = int(sys.argv[1]), json.loads(sys.argv[2])\n"
        "if number == 1 and settings.pop():\n"
        f"    {statement}\n"
        "config = apply_overrides(embedded(), settings if number == 1 else settings[:-1])\n"
        "run_priors(config, worker=number, num_workers=2, engine_factory=engine.factory)\n"
    )
    settings = [
        f"data.root={config.data.root}",
        f"model.path={config.model.path}",
        f"cache_root={config.cache_root}",
        "proposer.grid=16",
        "proposer.kind=soft-box",
        "canary.mode=skip",
    ]
    own = apply_overrides(RECIPES["embedded"](), settings)
    fails = [True]

    def start(worker, num_workers, arguments):
        with worker.log.open("ab") as log:
            told = json.dumps([*arguments, fails[0]])
            return subprocess.Popen([sys.executable, "-c", code, str(worker.index), told], stderr=log)

    monkeypatch.setattr(workers, "_start", start)
    with pytest.raises(DataError, match=f"1 of 2 workers failed; worker 1 ended with status {told_status}"):
        run_workers(own, 2, settings, quiet=True)
    store = PriorStore(describe_plan(own)["store"])
    assert store.done_shards == [0] and not store.is_complete
    fails[0] = False
    store = PriorStore(run_workers(own, 2, settings, quiet=True))
    calm = apply_overrides(own, [f"cache_root={tmp_path / 'calm'}"])
    undisturbed = PriorStore(run_priors(calm, engine_factory=FakeEngine().factory, quiet=True))
    assert store.is_complete and store.sample_ids == undisturbed.sample_ids
    for name in store.fields:
        np.testing.assert_array_equal(store.column(name), undisturbed.column(name), name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use GPUs here")
def test_a_machine_with_gpus_that_torch_cannot_use_is_refused(config, monkeypatch):
    """vLLM for CPUs would start there without a word."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(
        DataError, match=r"this machine has GPU 0, and torch .* can use none: .* asks for the CPU"
    ):
        run_priors(config, quiet=True)
    monkeypatch.setenv("SLURM_JOB_GPUS", "2")
    with pytest.raises(DataError, match="Slurm gave this job GPU 2, and torch .* can use none"):
        run_priors(config, quiet=True)


def test_more_workers_than_memory_are_refused(config, monkeypatch):
    """Their caches are known before they start."""
    monkeypatch.setattr(workers, "_available_gb", lambda: 9.0)
    own = apply_overrides(config, ["engine.image_cache_gb=0.25", "engine.kv_cache_gb=4"])
    require_memory(own, 2, on_gpus=False)
    with pytest.raises(
        DataError, match=r"3 workers take 12.8 GiB .*kv_cache_gb\), and this machine has 9 GiB"
    ):
        run_workers(own, 3, ["embedded"], quiet=True)
    require_memory(own, 30, on_gpus=True)
    require_memory(apply_overrides(own, ["engine.kind=transformers"]), 30, on_gpus=False)


def test_this_machine_says_what_is_left():
    assert workers._available_gb() > 0.1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_whoever_started_them(config, tmp_path, number):
    """Left alone they would hold their GPUs, and the next run would find no memory."""
    code = (
        "import json, subprocess, sys\n"
        "from shared.config import apply_overrides\n"
        "from stage1_priors import workers\n"
        "from stage1_priors.recipes import embedded\n"
        "workers.STAGGER_S = 0.0\n"
        "real = subprocess.Popen\n"
        "def sleeper(command, **options):\n"
        "    process = real(['sleep', '600'], **options)\n"
        "    with open(sys.argv[2], 'a') as pids:\n"
        "        print(process.pid, file=pids)\n"
        "    return process\n"
        "subprocess.Popen = sleeper\n"
        "workers.run_workers(apply_overrides(embedded(), json.loads(sys.argv[1])), 2, [], quiet=True)\n"
    )
    settings = [
        f"data.root={config.data.root}",
        f"model.path={config.model.path}",
        f"cache_root={config.cache_root}",
        "proposer.kind=soft-box",
    ]
    pids = tmp_path / "pids"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(settings), str(pids)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # nobody asks nvidia-smi, which is a process too
    )
    children = _when(
        lambda: pids.is_file() and len(pids.read_text().split()) == 2 and pids.read_text().split()
    )
    assert all(Path(f"/proc/{child}").exists() for child in children)
    parent.send_signal(number)
    assert parent.wait(timeout=60) == (STOPPED if number == signal.SIGTERM else -number)
    _when(lambda: not any(_lives(child) for child in children))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_is_passed_on_and_what_is_in_hand_is_finished(config, monkeypatch, tmp_path, number):
    """Worker 1 has the rest of its shard in hand and writes it; worker 0 has not, and ends without."""
    monkeypatch.setattr(workers, "STAGGER_S", 0.0)
    code = (
        "import json, sys, time\n"
        "from pathlib import Path\n"
        "from shared.config import apply_overrides\n"
        "from stage1_priors.recipes import embedded\n"
        "from stage1_priors.run import run_priors\n"
        "from tests.stage1_priors.fake_engine import FakeEngine\n"
        "worker, begun, told = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])\n"
        "class Waiting(FakeEngine):\n"
        "    def collect(self, requests):\n"
        "        begun.with_suffix(f'.{worker}').touch()\n"
        "        while not told.exists():\n"
        "            time.sleep(0.02)\n"
        "        time.sleep(1.5 if not self.num_requests else 0)  # the parent looks twice a second\n"
        "        return super().collect(requests)\n"
        "config = apply_overrides(embedded(), json.loads(sys.argv[4]))\n"
        "run_priors(config, worker=worker, num_workers=2, engine_factory=Waiting().factory)\n"
    )
    settings = [
        f"data.root={config.data.root}",
        f"model.path={config.model.path}",
        f"cache_root={config.cache_root}",
        "proposer.grid=16",
        "proposer.kind=soft-box",
        "canary.mode=skip",
        "engine.ahead_rows=128",
    ]
    own, begun, told = apply_overrides(RECIPES["embedded"](), settings), tmp_path / "begun", tmp_path / "told"

    def start(worker, num_workers, arguments):
        with worker.log.open("ab") as log:
            arguments = [str(worker.index), str(begun), str(told), json.dumps(settings)]
            return subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=log)

    def tell():
        _when(lambda: all(begun.with_suffix(f".{worker}").exists() for worker in range(2)))
        os.kill(os.getpid(), number)
        told.touch()

    monkeypatch.setattr(workers, "_start", start)
    teller = threading.Thread(target=tell)
    teller.start()
    with pytest.raises(SystemExit) as ended:
        run_workers(own, 2, settings, quiet=True)
    teller.join()
    store = PriorStore(describe_plan(own)["store"])
    assert ended.value.code == STOPPED and store.done_shards == [1]
    logs = [file.read_text() for file in sorted((Path(own.cache_root) / "logs").iterdir())]
    assert "stopped at a signal: 1 of 1 shards to do" in logs[0] and "stopped" not in logs[1]


def test_after_ctrl_c_workers_may_end_by_themselves(config, monkeypatch, tmp_path):
    """A terminal tells them too; killed at once they would leave notes of shards that were begun and never finished."""
    ended = tmp_path / "ended"
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "try:\n"
        "    Path(sys.argv[1]).with_suffix('.begun').touch()\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(0.5)\n"
        "    Path(sys.argv[1]).touch()\n"
    )

    def start(worker, num_workers, arguments):
        return subprocess.Popen([sys.executable, "-c", code, str(ended)])

    def interrupt(job, processes, told_to_stop, quiet):
        _when(ended.with_suffix(".begun").exists)
        processes[0].send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_start", start)
    monkeypatch.setattr(workers, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_workers(apply_overrides(config, ["engine.kv_cache_gb=1"]), 1, ["embedded"], quiet=True)
    assert ended.exists()


def test_a_command_that_makes_way_fills_its_store(config, tmp_path):
    """Two processes, one after the other, under one number: whoever waits sees one command that ends well."""
    code = (
        "import threading, time\n"
        "from cli import main\n"
        "from stage1_priors import finishing\n"
        "from stage1_priors.engines import ENGINES\n"
        "from tests.stage1_priors.fake_engine import FakeEngine\n"
        "measured = threading.Event()\n"
        "class Waiting(FakeEngine):\n"
        "    def collect(self, requests):\n"
        "        if self.num_requests == 512:\n"  # the first shard is with the thread that writes it
        "            assert measured.wait(60)\n"
        "            time.sleep(0.2)\n"
        "        return super().collect(requests)\n"
        "finishing.resident_gb = lambda: measured.set() or 9.0\n"
        "ENGINES['transformers'] = Waiting().factory\n"
        "main()\n"
    )
    settings = [
        f"data.root={config.data.root}",
        f"model.path={config.model.path}",
        f"cache_root={config.cache_root}",
        "canary.mode=skip",
        "engine.kind=transformers",
        "engine.chunk_rows=32",
        "engine.ahead_rows=32",
        "engine.memory_gb=8",
    ]
    arguments = ["priors", "run", "embedded-soft-box", *(part for one in settings for part in ("--set", one))]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=True
    )
    said = "9.00 GiB are taken, engine.memory_gb is 8.0: going on in a new process, 1 of 2 shards to do"
    assert done.stderr.count(said) == 1
    store = done.stdout.strip()
    assert verify_store(store)["ok"] and PriorStore(store).is_complete


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _when(condition):
    """What a condition gives once it holds."""
    end = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value
