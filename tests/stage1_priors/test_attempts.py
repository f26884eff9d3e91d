"""A row that ends the engine holds up no other shard, and after a few starts not its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.store.layout import read_header
from shared.store.publish import seal
from shared.store.reader import PriorStore
from shared.store.verify import store_status, verify_store
from shared.types import STATUS_CODES, AnswerStatus
from stage1_priors.attempts import GIVEN_UP, Attempt, Attempts, read_attempt
from stage1_priors.dry_run import describe_plan
from stage1_priors.engine import Answer, EngineFailed
from stage1_priors.job import make_job
from stage1_priors.memory import MemoryFull
from stage1_priors.proposers import PROPOSERS, BoxProposer, ProposerFailed, ProposerKind
from stage1_priors.run import run_priors
from tests.stage1_priors.fake_engine import FakeEngine, random_box_answer

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINE_ERROR = STATUS_CODES[AnswerStatus.ENGINE_ERROR]


def noted(path):
    header = read_header(path)
    found = {shard: read_attempt(header, shard) for shard in range(header.num_shards)}
    return {shard: one for shard, one in found.items() if one != Attempt()}


def files(path):
    return sorted(file.name for file in (path / "attempts").iterdir()) if (path / "attempts").exists() else []


@pytest.fixture
def poisoned(config):
    """Configuration, row and sample: a row of the first chunk of the first shard ends the engine."""
    config = apply_overrides(config, ["engine.ahead_rows=100"])  # the second shard is not begun by then
    rows = make_job(config).plan.samples
    expressions = [sample.expression for sample in rows]
    row = next(row for row in range(40, 100) if expressions.count(expressions[row]) == 1)
    return config, row, rows[row]


class Fragile(FakeEngine):
    """Fails at work on one expression, whatever is asked with it, as a fault of the GPU does; counts its calls."""

    def __init__(self, expression):
        self.calls = []
        super().__init__(self.answer)
        self.expression = expression

    def answer(self, request):
        if request.expression == self.expression:
            raise EngineFailed("an illegal memory access was encountered")
        return random_box_answer(request)

    def collect(self, requests):
        self.calls.append([request.expression for request in requests])
        return super().collect(requests)


def start(config, expression):
    engine = Fragile(expression)
    try:
        run_priors(config, engine_factory=engine.factory, quiet=True)
    except EngineFailed:
        return engine, False
    return engine, True


def assert_all_but(store, row, config, tmp_path):
    """The store is that of an undisturbed run but for one row."""
    calm = apply_overrides(config, [f"cache_root={tmp_path / 'calm'}"])
    undisturbed = PriorStore(run_priors(calm, engine_factory=FakeEngine().factory, quiet=True))
    others = np.arange(store.num_rows) != row
    for name in store.fields:
        np.testing.assert_array_equal(store.column(name)[others], undisturbed.column(name)[others], name)
    assert store.column("status")[row] == ENGINE_ERROR and store.texts("raw_text", [row]) == [GIVEN_UP]


def test_after_a_few_starts_the_store_lacks_one_answer(poisoned, tmp_path):
    config, row, sample = poisoned
    done, begun = [], []
    for _ in range(6):
        engine, complete = start(config, sample.expression)
        path = Path(describe_plan(config)["store"])
        done.append(PriorStore(path).done_shards)
        begun.append({shard: one.begun for shard, one in noted(path).items()})
        if complete:
            break
    # The second start asks for the other shard first; the third and fourth end in the row, the fifth leaves it out.
    assert done == [[], [1], [1], [1], [0, 1]]
    assert [one.get(0) for one in begun] == [1, 2, 3, 4, None] and files(path) == []
    assert sum(map(len, engine.calls)) == 511 and {len(call) for call in engine.calls} == {1}
    assert verify_store(path)["ok"] and store_status(path)["complete"]
    assert_all_but(PriorStore(path), row, config, tmp_path)
    again = Fragile(sample.expression)
    run_priors(config, engine_factory=again.factory, quiet=True)
    assert again.num_started == 0


def test_row_by_row_nothing_follows_before_a_row_is_done(poisoned):
    """When the engine ends, the row it was given is the last that was submitted, and the note names it."""
    config, row, sample = poisoned
    for _ in range(3):
        engine, complete = start(config, sample.expression)
        assert not complete
    assert engine.calls[-1] == [sample.expression] and len(engine.calls) == row + 1
    (note,) = noted(Path(describe_plan(config)["store"])).values()
    assert note == Attempt(begun=3, asking=sample.sample_id)


@pytest.mark.slow
def test_a_kill_counts_as_well(poisoned, tmp_path):
    """Five processes: four are killed at the row, two of them with chunks of a hundred; the fifth ends well."""
    config, row, sample = poisoned
    code = (
        "import os, pickle, signal, sys\n"
        "from stage1_priors.run import run_priors\n"
        "from tests.stage1_priors.fake_engine import FakeEngine, random_box_answer\n"
        "def answer(request):\n"
        "    if request.expression == sys.argv[1]:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return random_box_answer(request)\n"
        f"config = pickle.loads({_pickled(config)!r})\n"
        "run_priors(config, engine_factory=FakeEngine(answer).factory, quiet=True)\n"
    )
    ended = []
    while 0 not in ended and len(ended) < 7:
        done = subprocess.run([sys.executable, "-c", code, sample.expression], cwd=REPOSITORY)
        ended.append(done.returncode)
    assert ended == [-signal.SIGKILL] * 4 + [0]
    path = Path(describe_plan(config)["store"])
    assert files(path) == []
    assert_all_but(PriorStore(path), row, config, tmp_path)


def _pickled(config):
    import pickle

    return pickle.dumps(config)


def stopping(error):
    """An engine in whose second call the run is ended in order."""

    def answer_of(request):
        if engine.num_requests > 100:
            if error is SystemExit:
                os.kill(os.getpid(), signal.SIGTERM)
                return random_box_answer(request)
            raise error
        return random_box_answer(request)

    engine = FakeEngine(answer_of)
    return engine


@pytest.mark.parametrize(
    "before", [{}, {0: Attempt(begun=1)}, {0: Attempt(begun=3, asking="x", ended_on={"x": 1})}]
)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_in_order_is_no_attempt(config, before, error):
    with pytest.raises(KeyboardInterrupt):
        run_priors(config, engine_factory=stopping(KeyboardInterrupt).factory, quiet=True)
    path = Path(describe_plan(config)["store"])
    (path / "attempts").mkdir(exist_ok=True)
    for shard, attempt in before.items():
        note = {"begun": attempt.begun, "asking": attempt.asking, "ended_on": attempt.ended_on}
        (path / "attempts" / f"{shard}.json").write_bytes(seal(note))
    own = apply_overrides(config, ["engine.ahead_rows=100"])
    with pytest.raises(error):
        run_priors(own, engine_factory=stopping(error).factory, quiet=True)
    assert noted(path) == before and files(path) == [f"{shard}.json" for shard in before]


def test_full_memory_and_ceilings_are_no_attempt(config, monkeypatch):
    monkeypatch.setattr("stage1_priors.finishing.resident_gb", lambda: 9.0)
    small = apply_overrides(config, ["engine.memory_gb=8", "engine.chunk_rows=20", "engine.ahead_rows=20"])
    try:
        run_priors(small, engine_factory=FakeEngine(delay_s=0.02).factory, quiet=True)
    except MemoryFull:
        pass
    path = Path(describe_plan(small)["store"])
    assert noted(path) == {} and files(path) == []
    prose = FakeEngine(lambda request: Answer(text="Over there.", num_tokens=5, finish_reason="stop"))
    other = apply_overrides(config, ["proposer.grid=8", "reuse=false"])
    with pytest.raises(DataError, match="held no box"):
        run_priors(other, engine_factory=prose.factory, quiet=True)
    assert noted(Path(describe_plan(other)["store"])) == {}


def test_a_proposer_that_fails_holds_up_no_other_shard(poisoned, monkeypatch, tmp_path):
    config, row, sample = poisoned

    class Failing(BoxProposer):
        def propose(self, prompts):
            if sample.file_name in prompts.names_B:
                raise ProposerFailed(f"SAM failed on {sample.file_name}")
            return super().propose(prompts)

    monkeypatch.setitem(PROPOSERS, "soft-box", ProposerKind(make=lambda config, _: Failing(config)))
    done = []
    for _ in range(3):
        with pytest.raises(ProposerFailed):
            run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
        done.append(PriorStore(describe_plan(config)["store"]).done_shards)
    assert done == [[], [1], [1]]
    names = [one.file_name for one in make_job(config).plan.samples]
    first = make_job(config).plan.samples[names.index(sample.file_name)].sample_id
    assert noted(Path(describe_plan(config)["store"])) == {0: Attempt(begun=3, asking=first)}


def test_a_damaged_note_is_none_and_partial_files_are_removed(config):
    path = run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    folder = path / "attempts"
    assert files(path) == []
    for text in (b"", b"{}", b"[1]", seal({"begun": 1, "more": 2}), seal({"begun": 5})[:-9]):
        (folder / "0.json").write_bytes(text)
        assert Attempts(path, [0, 1]).usual() == [0, 1]
    left = folder / ".0.json.nowhere-99999-0123abcd.partial"
    left.write_bytes(b"")
    os.utime(left, (0, 0))
    assert describe_plan(config)["pending_shards"] == 0 and not left.exists()
    assert verify_store(path)["ok"]


def test_shards_begun_most_often_come_last(config):
    path = run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    for shard, begun in ((0, 1), (1, 0)):
        (path / "attempts" / f"{shard}.json").write_bytes(seal({"begun": begun}))
    assert (Attempts(path, [0, 1]).usual(), Attempts(path, [0, 1]).suspect()) == ([1, 0], [])
    (path / "attempts" / "0.json").write_bytes(seal({"begun": 2}))
    assert (Attempts(path, [0, 1]).usual(), Attempts(path, [0, 1]).suspect()) == ([1], [0])
    assert json.loads((path / "attempts" / "0.json").read_text())["body"] == {"begun": 2}
