"""The run: complete, resumable, isolated failures, ceilings, and no model call when nothing changed."""

import dataclasses
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.refer import ReferDataset, load_refer
from shared.runlog import ProgressBar
from shared.stopping import STOPPED
from shared.store.reader import PriorStore
from shared.types import STATUS_BY_CODE, STATUS_CODES, AnswerStatus
from stage1_priors import asked_shards, finishing
from stage1_priors import engine as engine_module
from stage1_priors.asked_shards import Timing
from stage1_priors.chunks import PIXEL_BYTES, PREPARED_NUMBERS
from stage1_priors.cluster_jobs import plan_work
from stage1_priors.dry_run import describe_plan
from stage1_priors.engine import Answer
from stage1_priors.job import make_job
from stage1_priors.memory import MemoryFull
from stage1_priors.proposals import NO_PRIOR
from stage1_priors.proposers import PROPOSERS, BoxProposer, ProposerKind
from stage1_priors.run import run_priors
from stage1_priors.workers import run_workers
from tests.stage1_priors.fake_engine import FakeEngine, engine_stopped_after, random_box_answer

REPOSITORY = Path(__file__).resolve().parents[2]


def run(config, engine, **options):
    return run_priors(config, engine_factory=engine.factory, quiet=True, **options)


def columns(path):
    store = PriorStore(path)
    store.require_complete()
    return {name: store.column(name).copy() for name in store.fields}


def assert_same_rows(a, b):
    left, right = columns(a), columns(b)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_every_sample_has_its_row(config):
    engine = FakeEngine()
    store = PriorStore(run(config, engine))
    dataset = load_refer(config.data.root, config.data.dataset, config.data.split_by)
    samples = dataset.samples()
    assert store.is_complete and store.num_rows == len(samples) > 512
    assert sorted(store.sample_ids) == sorted(sample.sample_id for sample in samples)
    rows = store.rows_of([sample.sample_id for sample in samples])
    assert store.texts("expression", rows) == [sample.expression for sample in samples]
    splits = store.attrs["splits"]
    assert [splits[code] for code in store.batch("split", rows)] == [sample.split for sample in samples]
    assert (store.batch("image_id", rows) == [sample.image_id for sample in samples]).all()
    assert engine.num_requests == len(samples) and engine.closed


def test_columns_of_one_row(config):
    store = PriorStore(run(config, FakeEngine()))
    row = 7
    raw, norm = store.batch("box_raw_xyxy", [row])[0], store.batch("box_xyxy_norm", [row])[0]
    np.testing.assert_allclose(norm, raw / 112, rtol=1e-6)
    assert store.batch("processed_hw", [row]).tolist() == [[112, 112]]
    assert store.batch("image_hw", [row]).tolist() == [[128, 128]]
    numbers = ", ".join(str(int(value)) for value in raw)
    assert store.texts("raw_text", [row]) == [f'[{{"bbox_2d": [{numbers}], "label": "x"}}]']
    assert STATUS_BY_CODE[int(store.batch("status", [row])[0])] is AnswerStatus.OK
    edge = store.batch("edge_logprob", [row])[0]
    assert (edge < 0).all() and store.batch("confidence", [row])[0] == pytest.approx(edge.mean())
    map_GG = store.batch("proposal", [row])[0]
    centre_xy = ((norm[:2] + norm[2:]) / 2 * 16).astype(int)
    assert map_GG[centre_xy[1], centre_xy[0]] > 128 > map_GG.min()


def test_rows_do_not_depend_on_chunks_workers_or_threads(config, tmp_path):
    whole = run(config, FakeEngine())
    parts = dataclasses.replace(
        config,
        cache_root=str(tmp_path / "other"),
        engine=dataclasses.replace(config.engine, chunk_rows=37, image_gb=0.005),
    )
    engines = [FakeEngine(), FakeEngine()]
    paths = {run(parts, engine, worker=worker, num_workers=2) for worker, engine in enumerate(engines)}
    assert len(paths) == 1 and all(engine.num_requests > 0 for engine in engines)
    path = paths.pop()
    assert path.name == whole.name
    assert_same_rows(whole, path)


def test_an_unchanged_run_asks_nothing(config):
    run(config, FakeEngine())
    again = FakeEngine()
    path = run(config, again)
    assert (again.num_started, again.num_requests) == (0, 0)
    assert describe_plan(config)["pending_shards"] == 0 and Path(describe_plan(config)["store"]) == path


def test_a_shard_that_another_run_has_written_is_not_written_again(config, tmp_path, capsys):
    """The other one writes both shards while this one asks about its first: what is in hand is all that is in vain."""
    config = apply_overrides(config, ["reuse=false", "engine.ahead_rows=1"])
    engine, other = FakeEngine(), FakeEngine()

    def answer_of(request):
        if not other.num_started:
            run(config, other)
        return random_box_answer(request)

    engine.answer_of = answer_of
    path = run_priors(config, engine_factory=engine.factory)
    store = PriorStore(path)
    assert store.is_complete and other.num_requests == store.num_rows
    assert engine.num_requests <= 512 < store.num_rows
    assert "another run on the same store wrote 2 shards meanwhile" in capsys.readouterr().err
    calm = run(apply_overrides(config, [f"cache_root={tmp_path / 'calm'}"]), FakeEngine())
    assert_same_rows(path, calm)


def test_what_does_not_start_is_told_in_a_line(config, monkeypatch, capsys):
    def no_engine(*_):
        raise RuntimeError("8 GiB are needed\nand more")

    with pytest.raises(DataError, match="^engine.kind=vllm did not start: RuntimeError: 8 GiB are needed$"):
        run_priors(config, engine_factory=no_engine)
    assert "in no_engine" in capsys.readouterr().err
    monkeypatch.setattr(BoxProposer, "load", no_engine)
    with pytest.raises(
        DataError, match="^proposer.kind=soft-box did not load: RuntimeError: 8 GiB are needed$"
    ):
        run(config, FakeEngine())
    assert not capsys.readouterr().err


def test_an_unchanged_run_imports_neither_torch_nor_vllm_and_is_quick(config):
    run(config, FakeEngine())
    code = (
        "import sys, time, pickle\n"
        "started = time.process_time()\n"
        "from stage1_priors.run import run_priors\n"
        f"config = pickle.loads({_pickled(config)!r})\n"
        "run_priors(config, quiet=True)\n"
        "heavy = [name for name in ('torch', 'vllm', 'transformers', 'zarr') if name in sys.modules]\n"
        "print(heavy, time.process_time() - started)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    heavy, seconds = done.stdout.strip().rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 2.0


def _pickled(config):
    import pickle

    return pickle.dumps(config)


def test_resume_after_a_failure_in_the_second_shard(config, tmp_path):
    calm = run(config, FakeEngine())
    broken = dataclasses.replace(config, cache_root=str(tmp_path / "other"))
    engine = engine_stopped_after(600)
    with pytest.raises(KeyboardInterrupt):
        run(broken, engine)
    assert engine.closed
    store = PriorStore(Path(broken.cache_root) / calm.name)
    assert store.done_shards == [0]
    rest = FakeEngine()
    path = run(broken, rest)
    assert rest.num_requests == store.num_rows - 512
    assert_same_rows(calm, path)


def told_to_stop_in(chunk, number=signal.SIGTERM):
    """An engine in whose n-th call the process is told to stop; and those calls."""
    calls = []

    class Told(FakeEngine):
        def collect(self, requests):
            calls.append(len(requests))
            if len(calls) == chunk:
                os.kill(os.getpid(), number)
            return super().collect(requests)

    return Told(), calls


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_stop_a_run_writes_the_shard_it_has_in_hand(config, tmp_path, capsys, number):
    """Chunks of 100, two ahead: in the fifth the rest of the shard of 512 is in hand, and the next shard's first."""
    calm = run(config, FakeEngine())
    told = apply_overrides(config, [f"cache_root={tmp_path / 'other'}", "engine.ahead_rows=100"])
    before = signal.getsignal(number)
    engine, calls = told_to_stop_in(5, number)
    with pytest.raises(SystemExit) as ended:
        run_priors(told, engine_factory=engine.factory)
    assert ended.value.code == STOPPED and calls == [100, 100, 100, 100, 100, 12] and engine.closed
    assert "stopped at a signal: 1 of 2 shards to do; the same command goes on" in capsys.readouterr().err
    assert PriorStore(Path(told.cache_root) / calm.name).done_shards == [0]
    assert signal.getsignal(number) is before
    rest = FakeEngine()
    path = run(told, rest)
    assert rest.num_requests == PriorStore(path).num_rows - 512
    assert_same_rows(calm, path)


def test_told_to_stop_a_run_does_nothing_in_vain(config, monkeypatch):
    """No chunk in hand ends a shard: none is collected after that in which it was told, and no mask is made of it."""
    made = []
    proposer = WatchedProposer(config.proposer, lambda: made.append(1))
    monkeypatch.setitem(PROPOSERS, "soft-box", ProposerKind(make=lambda *_arguments: proposer))
    engine, calls = told_to_stop_in(2)
    with pytest.raises(SystemExit) as ended:
        run(apply_overrides(config, ["engine.ahead_rows=100"]), engine)
    assert ended.value.code == STOPPED and calls == [100, 100] and len(made) == 1
    assert engine.closed and proposer.closed
    assert PriorStore(describe_plan(config)["store"]).done_shards == []


def test_told_to_stop_at_its_end_a_run_is_done(config):
    last = -(-512 // 100) + -(-(PriorStore(run(config, FakeEngine())).num_rows - 512) // 100)
    engine, calls = told_to_stop_in(last)
    store = PriorStore(run(apply_overrides(config, ["proposer.grid=8"]), engine))
    assert store.is_complete and len(calls) == last


def test_a_stopped_run_is_not_judged_by_what_it_leaves(config):
    """Ceilings count from 256 rows on, or at the end of a run: a stop is not its end."""

    def prose(request):
        return Answer(text="Over there.", num_tokens=5, finish_reason="stop")

    engine, _ = told_to_stop_in(1)
    engine.answer_of = prose
    with pytest.raises(SystemExit) as ended:
        run(apply_overrides(config, ["engine.ahead_rows=100"]), engine)
    assert ended.value.code == STOPPED


def test_a_process_that_holds_too_much_makes_way(config, tmp_path, monkeypatch):
    """After the shard it has in hand, which is none it had only begun; the next process does the rest."""
    calm = run(config, FakeEngine())
    noted = threading.Event()

    class Noting(finishing.Finisher):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "full_gb" and value:
                noted.set()

    class Waiting(FakeEngine):
        def collect(self, requests):
            if self.num_requests >= 512:  # the first shard is with the thread that writes it
                assert noted.wait(60)
            return super().collect(requests)

    monkeypatch.setattr(asked_shards, "Finisher", Noting)
    monkeypatch.setattr(finishing, "resident_gb", lambda: 9.0)
    few = ["engine.chunk_rows=20", "engine.ahead_rows=20"]
    settings = [f"cache_root={tmp_path / 'other'}", *few, "engine.memory_gb=8.5"]
    small, engine = apply_overrides(config, settings), Waiting()
    with pytest.raises(MemoryFull, match=r"9.00 GiB are taken, engine.memory_gb is 8.5: .*, 1 of 2 shards"):
        run(small, engine)
    store = PriorStore(Path(small.cache_root) / calm.name)
    assert store.done_shards == [0] and engine.closed
    rest = FakeEngine()
    path = run(small, rest)  # at its end nothing is left to make way for
    assert rest.num_requests == store.num_rows - 512
    assert_same_rows(calm, path)
    roomy = apply_overrides(small, [f"cache_root={tmp_path / 'third'}", "engine.memory_gb=9"])
    assert PriorStore(run(roomy, FakeEngine())).is_complete


@pytest.mark.slow
def test_resume_after_sigkill(config, tmp_path):
    calm = run(config, FakeEngine())
    killed = dataclasses.replace(config, cache_root=str(tmp_path / "other"))
    code = (
        "import pickle\n"
        "from stage1_priors.run import run_priors\n"
        "from tests.stage1_priors.fake_engine import FakeEngine\n"
        f"config = pickle.loads({_pickled(killed)!r})\n"
        "run_priors(config, engine_factory=FakeEngine(delay_s=0.5).factory)\n"
    )
    path = Path(killed.cache_root) / calm.name
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (path / "done" / "0.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert PriorStore(path).done_shards == [0]
    assert run(killed, FakeEngine()) == path
    assert_same_rows(calm, path)
    assert not list(path.rglob("*.partial"))


@pytest.mark.slow
def test_killed_twice_in_one_shard(config, tmp_path):
    """Two processes die within shard 0, the second further on; a third writes the rows of an undisturbed run."""
    calm = run(config, FakeEngine())
    killed = dataclasses.replace(config, cache_root=str(tmp_path / "other"))
    code = (
        "import os, pickle, signal, sys\n"
        "from stage1_priors.run import run_priors\n"
        "from tests.stage1_priors.fake_engine import FakeEngine, random_box_answer\n"
        "engine = FakeEngine()\n"
        "def answer(request):\n"
        "    if engine.num_requests > int(sys.argv[1]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return random_box_answer(request)\n"
        "engine.answer_of = answer\n"
        f"run_priors(pickle.loads({_pickled(killed)!r}), engine_factory=engine.factory, quiet=True)\n"
    )
    path = Path(killed.cache_root) / calm.name
    for requests in (150, 350):
        done = subprocess.run([sys.executable, "-c", code, str(requests)], cwd=REPOSITORY)
        assert done.returncode == -signal.SIGKILL
        assert PriorStore(path).done_shards == []
    assert run(killed, FakeEngine()) == path
    assert_same_rows(calm, path)
    assert not list(path.rglob("*.partial"))


def test_failed_requests_fail_alone(config):
    def fails_on_stars(request):
        if "star" in request.expression:
            raise ValueError("the prompt is too long")
        return random_box_answer(request)

    generous = apply_overrides(config, ["error_ceiling=1"])
    store = PriorStore(run(generous, FakeEngine(fails_on_stars)))
    expressions = store.texts("expression", range(store.num_rows))
    status = store.column("status")
    texts = store.texts("raw_text", range(store.num_rows))
    failed = np.array(["star" in expression for expression in expressions])
    assert 0 < failed.sum() < store.num_rows
    assert (status[failed] == STATUS_CODES[AnswerStatus.ENGINE_ERROR]).all()
    assert (status[~failed] == STATUS_CODES[AnswerStatus.OK]).all()
    assert {texts[row] for row in np.flatnonzero(failed)} == {"ValueError: the prompt is too long"}
    proposal = store.column("proposal")
    assert (proposal[failed] == NO_PRIOR).all() and np.isnan(store.column("box_xyxy_norm")[failed]).all()


def test_a_request_that_fails_once_is_asked_again(config):
    seen = Counter()

    def fails_first(request):
        seen[request.expression] += 1
        if "star" in request.expression and seen[request.expression] == 1:
            raise ValueError("hiccup")
        return random_box_answer(request)

    counts = PriorStore(run(config, FakeEngine(fails_first))).status_counts()
    assert set(counts) == {"ok"}


def test_a_dead_engine_stops_the_run_and_writes_no_rows(config):
    def dead(request):
        raise RuntimeError("engine core died")

    generous = apply_overrides(config, ["error_ceiling=1"])
    with pytest.raises(DataError, match="failed on all 100 requests.*engine core died"):
        run(generous, FakeEngine(dead))
    assert PriorStore(describe_plan(generous)["store"]).done_shards == []


def test_unreadable_images_are_rows_of_their_own(config, refshapes_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(refshapes_root, root)
    images = sorted((root / "images").glob("*.jpg"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:300])
    broken = apply_overrides(config, [f"data.root={root}"])
    engine = FakeEngine()
    store = PriorStore(run(broken, engine))
    bad = store.column("status") == STATUS_CODES[AnswerStatus.IMAGE_ERROR]
    dataset = load_refer(root, "refshapes", "unc")
    names = {sample.sample_id: sample.file_name for sample in dataset.samples()}
    assert {names[store.sample_ids[row]] for row in np.flatnonzero(bad)} == {images[0].name, images[1].name}
    assert engine.num_requests == store.num_rows - bad.sum()
    texts = store.texts("raw_text", np.flatnonzero(bad))
    assert all(images[0].name in text or images[1].name in text for text in texts)
    assert (store.column("processed_hw")[bad] == 0).all() and (
        store.column("proposal")[bad] == NO_PRIOR
    ).all()


def test_ceilings(config):
    def prose(request):
        return Answer(text="It is over there.", num_tokens=5, finish_reason="stop")

    with pytest.raises(DataError, match=r"300 of 300 answers held no box \(no_box 100\.0%\).*over there"):
        run(config, FakeEngine(prose))
    assert PriorStore(describe_plan(config)["store"]).done_shards == []
    generous = apply_overrides(config, ["answer_failure_ceiling=1"])
    store = PriorStore(run(generous, FakeEngine(prose)))
    assert store.status_counts() == {"no_box": store.num_rows}

    def fails_often(request):
        if len(request.expression) % 3 == 0:
            raise ValueError("no")
        return random_box_answer(request)

    fresh = apply_overrides(config, ["proposer.grid=8"])
    with pytest.raises(DataError, match="rows had an error.*error_ceiling is 0.05"):
        run(fresh, FakeEngine(fails_often))


def test_a_small_run_is_judged_at_its_end(config):
    small = apply_overrides(config, ["splits=val"])

    def prose(request):
        return Answer(text="Over there.", num_tokens=5, finish_reason="stop")

    with pytest.raises(DataError, match="answers held no box"):
        run(small, FakeEngine(prose))


def test_a_small_trial_of_the_first_pairs_is_kept_whatever_became_of_them(config, capsys):
    """It is there to be looked at; the run of all pairs, which takes it over, is judged as ever."""

    def prose(request):
        return Answer(text="Over there.", num_tokens=5, finish_reason="stop")

    trial = run_priors(
        apply_overrides(config, ["limit=6"]), engine_factory=FakeEngine(prose).factory, quiet=False
    )
    assert PriorStore(trial).status_counts() == {"no_box": 6}
    said = capsys.readouterr().err
    assert "note: a run of all pairs stops at such a share: 6 of 6 answers held no box" in said
    assert "answer_failure_ceiling is 0.5. Latest: refshapes.unc." in said
    for whole in (["splits=val"], ["splits=val", "limit=100000"], ["limit=300"]):
        with pytest.raises(DataError, match="answers held no box"):
            run(apply_overrides(config, whole), FakeEngine(prose))


def test_the_failure_that_is_shown_is_of_the_kind_that_stopped_the_run(config):
    def answers(request):
        if request.expression == first:
            raise ValueError("prompt too long")
        return Answer(text="Over there.", num_tokens=5, finish_reason="stop")

    small = apply_overrides(config, ["splits=val", "error_ceiling=0"])
    first = make_job(small).plan.samples[0].expression
    with pytest.raises(DataError, match="rows had an error.* engine_error: '.*prompt too long"):
        run(small, FakeEngine(answers))


def test_changes_are_named(config, capsys):
    run(config, FakeEngine())
    changed = apply_overrides(config, ["proposer.grid=8", "model.max_tokens=32"])
    plan = describe_plan(changed)
    assert not plan["exists"] and any(
        line.startswith("proposer.grid: 16 -> 8 (from ") for line in plan["changed"]
    )
    run_priors(changed, engine_factory=FakeEngine().factory)
    said = capsys.readouterr().err
    assert "asked.max_tokens: 96 -> 32" in said and "proposer.grid: 16 -> 8" in said


def test_plan_without_a_model_says_so(config):
    plan = describe_plan(apply_overrides(config, ["model.path=/no/such/folder"]))
    assert plan["pairs"] > 512 and "no folder '/no/such/folder'" in plan["problem"]
    with pytest.raises(DataError, match="no folder"):
        run(apply_overrides(config, ["model.path=/no/such/folder"]), FakeEngine())


def test_an_engine_that_is_not_installed_is_told_before_anything_else(config, monkeypatch):
    installed = engine_module.engine_versions("vllm")
    absent = {"vllm": engine_module.NOT_INSTALLED}
    monkeypatch.setattr(
        engine_module, "engine_versions", lambda kind: installed | (absent if kind == "vllm" else {})
    )
    said = (
        r"engine\.kind=vllm needs vllm, not installed in .*: pip install .* --set engine\.kind=transformers"
    )
    assert re.match(said, describe_plan(config)["problem"])
    for begin in (run_priors, functools.partial(plan_work, arguments=["embedded"], num_tasks=1)):
        with pytest.raises(DataError, match=said):
            begin(config)
    with pytest.raises(DataError, match=said):
        run_workers(config, 2, ["embedded"], quiet=True)
    assert describe_plan(apply_overrides(config, ["engine.kind=transformers"]))["problem"] is None
    with pytest.raises(
        DataError, match="does not say which store"
    ):  # the jobs' own interpreter is asked instead
        plan_work(config, ["embedded"], 1, ["false"])
    assert not Path(config.cache_root, "logs").exists()


def test_missing_data_is_named(config):
    with pytest.raises(DataError, match="nowhere"):
        describe_plan(apply_overrides(config, ["data.root=nowhere"]))


class WatchedProposer:
    """The soft-box proposer, with something done before each call."""

    def __init__(self, config, before):
        self.inner, self.before, self.closed = BoxProposer(config), before, False
        self.kept, self.kept_hw = self.inner.kept, self.inner.kept_hw

    def load(self):
        pass

    def propose(self, prompts):
        self.before()
        return self.inner.propose(prompts)

    def close(self):
        self.closed = True


def test_following_chunks_are_submitted_before_a_chunk_is_collected(config):
    submitted, missing = threading.Semaphore(0), []

    class Full(FakeEngine):
        def submit(self, requests):
            submitted.release()
            return super().submit(requests)

        def collect(self, requests):
            # The first chunk is not answered before it and the two after it have been submitted.
            if not self.num_requests:
                missing.extend(n for n in range(3) if not submitted.acquire(timeout=20))
            return super().collect(requests)

    ahead = apply_overrides(config, ["engine.ahead_rows=150"])
    assert PriorStore(run(ahead, Full())).is_complete and not missing


def test_no_more_is_submitted_than_the_engine_is_to_hold(config):
    held, most = [0], []

    class Counting(FakeEngine):
        def submit(self, requests):
            held[0] += len(requests)
            most.append(held[0])
            return super().submit(requests)

        def collect(self, requests):
            seen = -1
            while seen != held[0]:  # as long as the reader is at it
                seen = held[0]
                time.sleep(0.2)
            held[0] -= len(requests)
            return super().collect(requests)

    run(apply_overrides(config, ["engine.ahead_rows=150"]), Counting())
    assert (
        100 < max(most) <= 400
    )  # chunks of 100: the one being answered, two ahead, one more being submitted


def test_images_do_not_outlive_their_chunk(config, monkeypatch):
    """However long the run, there are never more images than those of the chunks in hand."""
    opened, alive = [], []
    read = ReferDataset.image

    def image(*arguments):
        given = read(*arguments)
        opened.append(weakref.ref(given))
        alive.append(sum(one() is not None for one in opened))
        return given

    monkeypatch.setattr(ReferDataset, "image", image)
    run(apply_overrides(config, ["engine.chunk_rows=20", "engine.ahead_rows=20"]), FakeEngine())
    # Nobody looks at them but the model, which has its own: one being read, one that is let go of.
    assert len(opened) > 150 and max(alive) <= 2


@pytest.mark.parametrize("looks", [True, False])
def test_images_take_no_more_memory_than_they_may(config, monkeypatch, looks):
    """Chunks of 512 rows would hold nearly all of the images at once; the engine holds what it was given, too."""
    bytes_held = {"now": 0, "most": 0}

    def hold(image, num_bytes):
        bytes_held["now"] += num_bytes
        bytes_held["most"] = max(bytes_held.values())
        weakref.finalize(image, lambda: bytes_held.update(now=bytes_held["now"] - num_bytes))

    class Preparing(FakeEngine):
        def submit(self, requests):
            for image in {id(one.image): one.image for one in requests}.values():
                hold(image, image.width * image.height * (PIXEL_BYTES + PREPARED_NUMBERS * 4))
            return super().submit(requests)

    def keep(image):
        hold(image, image.width * image.height * PIXEL_BYTES)
        return image

    proposer = WatchedProposer(config.proposer, lambda: time.sleep(0.01))
    if looks:
        proposer.kept, proposer.kept_hw = keep, lambda size_hw: size_hw
    monkeypatch.setitem(PROPOSERS, "soft-box", ProposerKind(make=lambda *_arguments: proposer))
    bound = 12 * 2**20  # of images that take 0.4 MiB each
    most = apply_overrides(config, ["engine.chunk_rows=512", f"engine.image_gb={bound / 2**30}"])
    store = PriorStore(run(most, Preparing()))
    assert store.is_complete and bound / 3 < bytes_held["most"] <= bound


def test_masks_are_made_while_the_engine_works_on_the_next_chunk(config, monkeypatch):
    made, waited = threading.Semaphore(0), []

    class Waiting(FakeEngine):
        def collect(self, requests):
            # Every chunk but the first waits for the masks of the one before to be begun.
            if self.num_requests:
                waited.append(made.acquire(timeout=20))
            return super().collect(requests)

    proposer = WatchedProposer(config.proposer, made.release)
    monkeypatch.setitem(PROPOSERS, "soft-box", ProposerKind(make=lambda *_arguments: proposer))
    path = run(config, Waiting())
    assert PriorStore(path).is_complete and len(waited) >= 5 and all(waited) and proposer.closed


def test_a_failing_proposer_stops_the_run_and_keeps_finished_shards(config, monkeypatch):
    calls = []

    def fail_late():
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("out of memory")

    engine, proposer = FakeEngine(), WatchedProposer(config.proposer, fail_late)
    monkeypatch.setitem(PROPOSERS, "soft-box", ProposerKind(make=lambda *_arguments: proposer))
    with pytest.raises(RuntimeError, match="out of memory"):
        run(config, engine)
    store = PriorStore(describe_plan(config)["store"])
    assert store.done_shards == [0] and engine.closed and proposer.closed
    monkeypatch.undo()
    assert PriorStore(run(config, FakeEngine())).is_complete


def test_priors_without_a_sam_have_no_expected_iou(config):
    assert np.isnan(PriorStore(run(config, FakeEngine())).column("proposer_iou")).all()


def test_a_run_says_what_the_engine_waited_for_and_what_its_caches_gave(config, capsys):
    engine = FakeEngine(delay_s=0.05)
    engine.cache_hits = lambda: {"prefix": 0.5, "images": 0.75}
    run_priors(config, engine_factory=engine.factory)
    said = capsys.readouterr().err
    assert re.search(r"engine waited \d+\.\d% of the time \(\d+\.\d% for images, \d+\.\d% for masks", said)
    assert "cache hits: prefix 50%, images 75%" in said


def test_progress_tells_rate_time_left_answers_and_waiting(config, capsys, monkeypatch):
    monkeypatch.setattr("stage1_priors.asked_shards.ProgressBar", functools.partial(ProgressBar, every_s=0.0))
    run_priors(config, engine_factory=FakeEngine(delay_s=0.01).factory)
    lines = re.findall(r"^priors \[.*$", capsys.readouterr().err, re.MULTILINE)
    told = r"priors \[ok 100\.0%; engine waits \d+%\]: 100/\d+ pairs \(\d+%\), [\d.]+ pairs/s, \d+ s left"
    assert re.fullmatch(told, lines[0]) and len(lines) > 5 and lines[-1].endswith(" s")


def test_timing_counts_what_is_inside():
    timing = Timing(asking=6.0, images=1.0, masks=1.0)
    assert timing.waiting == 0.25 and timing.share(timing.images) == 0.125
    with pytest.raises(KeyError), timing.spent_on("images"):
        raise KeyError
    assert 1.0 < timing.images < 1.5
    assert Timing().waiting == 0.0 and "cache" not in timing.line({})


def test_a_run_that_cannot_fit_into_memory_is_refused_before_its_store_is_made(config, monkeypatch):
    monkeypatch.setattr("stage1_priors.memory_left.free_gb", lambda: 0.1)
    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, kind="vllm"))
    with pytest.raises(DataError, match=r"this run takes .* GiB for images and caches .* 0.1 GiB are left"):
        run_priors(config, quiet=True)
    assert not list(Path(config.cache_root).glob("*.zarr"))
