"""Several workers of one run: what each is started with, and what becomes of the store and of failures."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.config import apply_overrides
from shared.errors import DataError
from shared.stopping import STOPPED
from shared.store.reader import PriorStore
from shared.store.verify import verify_store
from stage1_priors import workers
from stage1_priors.dry_run import describe_plan
from stage1_priors.recipes import RECIPES
from stage1_priors.run import run_priors
from stage1_priors.worker_env import Worker
from stage1_priors.workers import Started, run_workers
from tests.stage1_priors.fake_engine import FakeEngine


def test_cores_are_those_this_process_may_use(config, monkeypatch):
    """A batch job is given some cores of a node."""
    seen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 9, 17})
    monkeypatch.setattr(workers, "visible_gpus", list)

    def planned(num_workers, gpus, gpus_each, cores, *_):
        seen.append(cores)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "plan_workers", planned)
    with pytest.raises(KeyboardInterrupt):
        run_workers(apply_overrides(config, ["engine.kv_cache_gb=1"]), 1, ["embedded"], quiet=True)
    assert seen == [3]


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
    "SIGKILL in the middle of its shard": (
        "engine.answer_of = kill_at_100",
        r"-9 \(killed; the kernel .*",
    ),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_failed_worker_is_named_at_once_and_the_others_finish(config, monkeypatch, tmp_path, death, capfd):
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
        "num, dealt = map(json.loads, sys.argv[3:])\n"
        "run_priors(config, worker=number, num_workers=num, dealt=dealt, engine_factory=engine.factory)\n"
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

    def start(worker, num_workers, arguments, dealt):
        with worker.log.open("ab") as log:
            told = json.dumps([*arguments, fails[0]])
            own = [str(worker.index), told, str(num_workers), json.dumps(dealt)]
            return subprocess.Popen([sys.executable, "-c", code, *own], stderr=log)

    monkeypatch.setattr(workers, "_start", start)
    with pytest.raises(DataError, match=f"1 of 2 workers failed; worker 1 ended with status {told_status}"):
        run_workers(own, 2, settings)
    said = capfd.readouterr().err
    assert said.count("worker 1 ended with status") == 1 and said.count("worker 0 ended") == 0
    store = PriorStore(describe_plan(own)["store"])
    assert store.done_shards == [0] and not store.is_complete
    fails[0] = False
    store = PriorStore(run_workers(own, 2, settings, quiet=True))
    calm = apply_overrides(own, [f"cache_root={tmp_path / 'calm'}"])
    undisturbed = PriorStore(run_priors(calm, engine_factory=FakeEngine().factory, quiet=True))
    assert store.is_complete and store.sample_ids == undisturbed.sample_ids
    for name in store.fields:
        np.testing.assert_array_equal(store.column(name), undisturbed.column(name), name)


def test_missing_shards_are_dealt_evenly_to_no_more_workers_than_there_are(config, monkeypatch):
    """However many are asked for: a worker without a shard would start an engine's place for nothing."""
    given = []

    def start(worker, num_workers, arguments, dealt):
        given.append((worker.index, num_workers, dealt))
        code = "print('error: it was this'); print('a word of farewell'); exit(3)"
        with worker.log.open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", code], stdout=log)

    monkeypatch.setattr(workers, "STAGGER_S", 0.0)
    monkeypatch.setattr(workers, "visible_gpus", list)
    monkeypatch.setattr(workers, "_start", start)
    own = apply_overrides(config, ["engine.kind=transformers"])
    with pytest.raises(
        DataError, match="2 of 2 workers failed; worker 0 ended with status 3: error: it was this"
    ):
        run_workers(own, 8, ["embedded"], quiet=True)
    assert given == [(0, 2, [0, 1]), (1, 2, [0, 1])]


def test_a_death_is_not_explained_by_an_earlier_run(tmp_path):
    log = tmp_path / "log"
    log.write_text("error: of yesterday\n")
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    process.wait()
    worker = Worker(index=4, environment={}, log=log)
    ending = Started(worker=worker, process=process, log_start=log.stat().st_size).ending()
    killed = "killed; the kernel kills whoever takes too much memory"
    assert ending == f"worker 4 ended with status -9 ({killed}): nothing (its log: {log})"


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

    def start(worker, num_workers, arguments, dealt):
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

    def start(worker, num_workers, arguments, dealt):
        return subprocess.Popen([sys.executable, "-c", code, str(ended)])

    def interrupt(job, started, told_to_stop, quiet):
        _when(ended.with_suffix(".begun").exists)
        started[0].process.send_signal(signal.SIGINT)
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
