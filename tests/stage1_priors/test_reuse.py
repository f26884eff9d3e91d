"""Rows of other stores are taken over where nothing they depend on differs, and nowhere else."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.store.reader import PriorStore
from shared.store.schema import EXPRESSION_BYTES, IMAGE_HASH
from shared.store.verify import store_status, verify_store
from shared.synth.example import write_example
from stage1_priors.chunks import Bounds, chunks_of
from stage1_priors.config import DataConfig
from stage1_priors.dry_run import describe_plan
from stage1_priors.engine import Answer
from stage1_priors.job import find_known_rows, make_job
from stage1_priors.run import run_priors
from stage1_priors.tiny_sam import WEIGHTS_DIR
from tests.stage1_priors.fake_engine import (
    FakeEngine,
    box_answer,
    engine_stopped_after,
    random_box_answer,
    seen_box_answer,
)


def run(config, engine, **options):
    return PriorStore(run_priors(config, engine_factory=engine.factory, quiet=True, **options))


def alone(config, tmp_path, engine=None):
    """The store of the same configuration in a cache of its own, where nothing is known."""
    return run(dataclasses.replace(config, cache_root=str(tmp_path / "alone")), engine or FakeEngine())


def assert_same_rows(a, b):
    assert a.fields == b.fields and a.fingerprint == b.fingerprint
    for name in a.fields:
        np.testing.assert_array_equal(a.column(name), b.column(name), err_msg=name)


@pytest.fixture
def photos(config, tmp_path):
    """Own data as a JSONL file, and the configuration for it."""
    path = Path(write_example(tmp_path / "photos")["path"])
    data = DataConfig(root=str(path), dataset="mine")
    return path, dataclasses.replace(config, data=data, splits=("train", "val"))


def lines_of(path):
    return [line for line in path.read_text().splitlines() if line.startswith("{")]


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))


def test_another_split_asks_for_its_own_rows_only(config, tmp_path, capsys):
    small = run(apply_overrides(config, ["splits=train"]), FakeEngine())
    engine = FakeEngine()
    assert describe_plan(config)["reused"] == {small.path.name: small.num_rows}
    store = PriorStore(run_priors(config, engine_factory=engine.factory))
    assert engine.num_requests == store.num_rows - small.num_rows > 0
    said = capsys.readouterr().err
    assert f"{small.num_rows} of {store.num_rows} pairs are known already" in said
    assert f"{engine.num_requests} pairs in" in said
    assert_same_rows(alone(config, tmp_path), store)
    assert verify_store(store.path)["ok"]
    status = store_status(store.path)
    assert status["reused"] == {small.path.name: small.num_rows}
    assert sum(status["status_counts"].values()) == store.num_rows


def test_a_part_of_a_store_starts_no_engine(config, tmp_path):
    big = run(config, FakeEngine())
    engine = FakeEngine()
    small_config = apply_overrides(config, ["splits=val,testA"])
    small = run(small_config, engine)
    assert (engine.num_started, engine.num_requests) == (0, 0)
    assert small.attrs["canary"] == big.attrs["canary"] and small.attrs["logprobs"] == big.attrs["logprobs"]
    assert_same_rows(alone(small_config, tmp_path), small)
    assert store_status(small.path)["reused"] == {big.path.name: small.num_rows}


def test_rows_of_several_stores_fill_one_shard(config, tmp_path):
    """Each in its own place, whichever store is looked through first."""
    parts = [run(apply_overrides(config, [f"splits={split}"]), FakeEngine()) for split in ("val", "testA")]
    engine = FakeEngine()
    both = apply_overrides(config, ["splits=testA,val"])
    store = run(both, engine)
    assert engine.num_requests == 0 and store.num_rows == sum(part.num_rows for part in parts) <= 512
    assert store_status(store.path)["reused"] == {part.path.name: part.num_rows for part in parts}
    assert_same_rows(alone(both, tmp_path), store)


def test_a_renamed_store_is_not_asked_for_again(config):
    """Its name says nothing; whole or half filled it is another folder of the same rows."""
    store = run(config, FakeEngine())
    renamed = store.path.with_name("qwen7b.zarr")
    store.path.rename(renamed)
    engine = FakeEngine()
    again = run(config, engine)
    assert (engine.num_requests, again.path) == (0, store.path)
    assert_same_rows(PriorStore(renamed), again)


def test_own_data_that_grew_asks_about_the_new_pairs(photos, tmp_path):
    path, config = photos
    first = run(config, FakeEngine())
    lines = lines_of(path)
    more = [
        json.dumps({"image": json.loads(lines[0])["image"], "expression": "something in a corner"}),
        json.dumps(
            {"image": json.loads(lines[3])["image"], "expression": json.loads(lines[3])["expression"]}
        ),
    ]
    write_lines(path, [more[0], *lines[2:], more[1], *lines[:2]])  # every line has another number now
    engine = FakeEngine()
    second = run(config, engine)
    assert second.path != first.path and second.num_rows == first.num_rows + 2
    assert engine.num_requests == 1  # a pair that was written twice is known as well
    assert_same_rows(alone(config, tmp_path), second)


def test_other_image_bytes_are_asked_about(photos, tmp_path):
    path, config = photos
    first = run(config, FakeEngine())
    lines = lines_of(path)
    names = [json.loads(line)["image"] for line in lines]
    image = path.parent / names[0]
    shutil.copyfile(path.parent / next(name for name in names if name != names[0]), image)
    engine = FakeEngine()
    second = run(config, engine)
    asked = names.count(names[0])
    assert 0 < engine.num_requests <= asked and second.num_rows == first.num_rows
    assert_same_rows(alone(config, tmp_path), second)


@pytest.mark.parametrize(
    "change",
    [
        "model.max_tokens=32",
        "model.question=Where is the {expression}?",
        "proposer.grid=8",
        "clip_tolerance=0.1",
        "canary.mode=warn",
        "reuse=false",
        "image_hash=size",
    ],
)
def test_what_another_model_or_setting_said_is_not_taken(config, change):
    run(apply_overrides(config, ["splits=train"]), FakeEngine())
    changed = apply_overrides(config, ["splits=train,val", change])
    engine = FakeEngine()
    store = run(changed, engine)
    scenes = config.canary.scenes if change == "canary.mode=warn" else 0
    taken = store.num_rows + scenes - engine.num_requests
    assert (taken > 0) == (change == "canary.mode=warn")  # the canary changes no row


def test_where_the_canary_must_pass_it_has_passed(config):
    """A store whose canary was skipped gives nothing to a run that refuses to write without one."""
    run(apply_overrides(config, ["splits=train"]), FakeEngine())
    careful = apply_overrides(config, ["splits=train,val", "canary.mode=refuse"])
    assert describe_plan(careful)["reused"] == {}
    with pytest.raises(DataError, match="canary"):
        run(careful, FakeEngine(lambda request: box_answer((0, 0, 1, 1))))


def test_failed_rows_are_asked_again(config, tmp_path):
    def fails_on_stars(request):
        if "star" in request.expression:
            raise ValueError("hiccup")
        return random_box_answer(request)

    broken = run(apply_overrides(config, ["splits=train", "error_ceiling=1"]), FakeEngine(fails_on_stars))
    failed = broken.status_counts()["engine_error"]
    engine = FakeEngine()
    store = run(config, engine)
    assert engine.num_requests == store.num_rows - broken.num_rows + failed
    assert set(store.status_counts()) == {"ok"}
    assert_same_rows(alone(config, tmp_path), store)


@pytest.mark.parametrize("status", ["engine_error", "no_box"])
def test_what_fails_again_is_judged_with_what_is_known(config, status):
    """Hardly a row is asked for but those that failed before; that is no dead engine, and no model without boxes."""

    def fails_on_stars(request):
        if "star" not in request.expression:
            return random_box_answer(request)
        if status == "no_box":
            return Answer(text="Nowhere.", num_tokens=2, finish_reason="stop")
        raise ValueError("the prompt is too long")

    generous = apply_overrides(config, ["error_ceiling=0.5", "splits=train"])
    whole = run(generous, FakeEngine(fails_on_stars))
    assert whole.status_counts()[status] >= 8
    more = apply_overrides(generous, ["splits=train,val", "ceiling_min_rows=8"])
    kept = Counter(whole.status_counts())
    del kept["engine_error"]
    assert find_known_rows(make_job(more)).statuses() == kept
    store = run(more, FakeEngine(fails_on_stars))
    assert store.status_counts()[status] >= whole.status_counts()[status]
    again = {"engine_error": whole.status_counts()[status], "no_box": 0}[status]
    assert store_status(store.path)["reused"] == {whole.path.name: whole.num_rows - again}


def test_rows_of_a_skipped_canary_do_not_pass_through_another_store(config):
    first = run(apply_overrides(config, ["splits=train"]), FakeEngine(seen_box_answer))
    both = ["splits=train,val", "canary.mode=warn", "answer_failure_ceiling=1"]
    second = run(apply_overrides(config, both), FakeEngine(seen_box_answer))
    assert second.attrs["canary"]["passed"]
    assert store_status(second.path)["reused"] == {first.path.name: first.num_rows}
    careful = apply_overrides(config, ["splits=train,val,testA", "canary.mode=refuse"])
    taken = describe_plan(careful)["reused"].get(second.path.name, 0)
    assert taken <= second.num_rows - first.num_rows


def test_a_store_that_cannot_be_read_is_passed_over(config, tmp_path, capsys):
    small = run(apply_overrides(config, ["splits=val"]), FakeEngine())
    (small.path / "manifest.json").unlink()
    engine = FakeEngine()
    store = PriorStore(run_priors(config, engine_factory=engine.factory))
    assert engine.num_requests == store.num_rows and "manifest.json: missing" in capsys.readouterr().err
    assert_same_rows(alone(config, tmp_path), store)


def test_a_colleague_s_store_is_passed_over_by_run_and_dry_run(config, capsys):
    """A folder stands for a header that only its owner may read."""
    theirs = Path(config.cache_root) / "theirs.zarr" / "zarr.json"
    theirs.mkdir(parents=True)
    assert describe_plan(config)["reused"] == {} and describe_plan(config)["changed"] == []
    store = PriorStore(run_priors(config, engine_factory=FakeEngine().factory))
    assert store.is_complete
    assert f"cannot be read: {theirs}: cannot be read (Is a directory)" in capsys.readouterr().err


def test_a_store_begun_without_hashes_is_finished(config, monkeypatch):
    """Stores of before the field are as good as ever, and give nothing to others."""
    monkeypatch.setattr("stage1_priors.job.content_hashes", lambda identities: {})
    old = run(config, FakeEngine())
    monkeypatch.undo()
    (old.path / "done" / "1.json").unlink()
    assert IMAGE_HASH not in old.fields
    engine = FakeEngine()
    again = run(config, engine)
    assert again.is_complete and again.fields == old.fields and engine.num_requests == old.num_rows - 512
    assert describe_plan(apply_overrides(config, ["splits=val"]))["reused"] == {}


def test_unfinished_shards_give_nothing(config):
    whole = run(apply_overrides(config, ["splits=train"]), FakeEngine())
    (whole.path / "done" / "0.json").unlink()
    assert describe_plan(config)["reused"] == {whole.path.name: whole.num_rows - 512}


def test_a_run_that_was_stopped_takes_the_same_rows_again(config, tmp_path):
    run(apply_overrides(config, ["splits=testA,val"]), FakeEngine())
    with pytest.raises(KeyboardInterrupt):
        run(config, engine_stopped_after(512))
    store = PriorStore(describe_plan(config)["store"])
    assert 0 < len(store.done_shards) < describe_plan(config)["shards"]
    rest = FakeEngine()
    assert_same_rows(alone(config, tmp_path), run(config, rest))
    assert 0 < rest.num_requests < store.num_rows - 512


def test_workers_share_what_is_known(config, tmp_path):
    run(apply_overrides(config, ["splits=train"]), FakeEngine())
    engines = [FakeEngine(), FakeEngine()]
    stores = [run(config, engine, worker=index, num_workers=2) for index, engine in enumerate(engines)]
    assert_same_rows(alone(config, tmp_path), stores[-1])


def test_long_and_odd_expressions_are_asked_again(photos):
    """What a store had to cut or change may be another sentence."""
    path, config = photos
    lines = lines_of(path)
    image = json.loads(lines[0])["image"]
    long = "x" * EXPRESSION_BYTES
    texts = (f"{long} one", "odd \ufffd", "plain")
    write_lines(path, [json.dumps({"image": image, "expression": text}) for text in texts] + lines)
    run(config, FakeEngine())
    texts = (*texts, f"{long} two", long)
    write_lines(path, [json.dumps({"image": image, "expression": text}) for text in texts] + lines)
    engine = FakeEngine()
    run(config, engine)
    assert engine.num_requests == 4, "all but the plain one"


def test_sampled_boxes_keep_their_seed(photos):
    """With samples a row's seed is its sample id's, so only rows of the same id are taken."""
    path, config = photos
    config = apply_overrides(config, ["model.num_samples=2"])

    def sampled(request):
        answer = random_box_answer(request)
        return dataclasses.replace(answer, samples=((answer.text, "stop"),) * 2)

    lines = lines_of(path)
    write_lines(path, lines)
    first = run(config, FakeEngine(sampled))
    swapped = [lines[1], lines[0], *lines[2:]]
    write_lines(path, swapped)
    engine = FakeEngine(sampled)
    run(config, engine)
    assert 0 < engine.num_requests < first.num_rows


def test_chunks_hold_so_many_rows_to_ask_for(config):
    run(apply_overrides(config, ["splits=val"]), FakeEngine())
    job = make_job(config)
    known = find_known_rows(job)
    bounds = Bounds(rows=50, num_bytes=1, num_ahead=1)
    chunks = list(chunks_of(job.plan, known, range(job.plan.num_shards), bounds, lambda *_: 0))
    assert [(chunk.start, chunk.stop) for chunk in chunks] == list(
        zip([0, *(chunk.stop for chunk in chunks[:-1])], [chunk.stop for chunk in chunks], strict=True)
    )
    assert all(0 < len(chunk.asked) <= 50 for chunk in chunks)
    assert sum(len(chunk.asked) for chunk in chunks) == len(job.plan.samples) - known.num
    assert (
        sum(chunk.is_first for chunk in chunks)
        == sum(chunk.is_last for chunk in chunks)
        == job.plan.num_shards
    )


def prose(request):
    return Answer(text="It is over there.", num_tokens=5, finish_reason="stop")


def test_known_rows_do_not_hide_that_all_others_fail(config):
    """Three quarters of the rows are known and good, so that the rest is below the ceiling of a half."""
    run(apply_overrides(config, ["splits=train"]), FakeEngine())
    known = sum(describe_plan(config)["reused"].values())
    asked = describe_plan(config)["pairs"] - known
    judged = apply_overrides(config, [f"ceiling_min_rows={asked - asked % 100}"])
    assert known > 2 * asked > 200
    with pytest.raises(DataError, match=r"stopped: (\d+) of \1 answers held no box"):
        run(judged, FakeEngine(prose))
    few = apply_overrides(config, [f"ceiling_min_rows={asked + 1}"])
    assert run(few, FakeEngine(prose)).is_complete


def test_a_damaged_store_is_named(config, tmp_path):
    small = run(apply_overrides(config, ["splits=train"]), FakeEngine())
    file = next((small.path / "proposal").glob("c.0*"))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"{small.path.name}.*--set reuse=false"):
        run(config, FakeEngine())
    assert_same_rows(alone(config, tmp_path), run(apply_overrides(config, ["reuse=false"]), FakeEngine()))


def test_candidates_come_along(photos, tmp_path):
    """They lie in the first row of an image in its shard, which is another row once the lines are turned round."""
    path, config = photos
    sam = ["proposer.kind=sam2", f"proposer.path={WEIGHTS_DIR}", "proposer.candidates.num=4"]
    sam += [
        "proposer.candidates.side=16",
        "proposer.candidates.prompts=boxes",
        "proposer.candidates.points_per_side=2",
    ]
    sam += ["proposer.candidates.min_iou=0", "proposer.candidates.min_stability=0"]
    config = apply_overrides(config, sam)
    lines = lines_of(path)
    of_first, of_last = (json.loads(line)["image"] for line in (lines[0], lines[-1]))
    lines.append(json.dumps({"image": of_first, "expression": "something else"}))  # a row that holds none
    write_lines(path, lines)
    small = run(config, FakeEngine())
    more = json.dumps({"image": of_last, "expression": "something in a corner"})
    write_lines(path, [more, *lines[::-1]])
    store = run(config, FakeEngine())
    assert store_status(store.path)["reused"] == {small.path.name: small.num_rows}
    expected = alone(config, tmp_path)
    for name in ("candidates", "proposal"):  # other images shared SAM's batch
        np.testing.assert_allclose(store.column(name).astype(int), expected.column(name).astype(int), atol=1)
    held = [(one.column("candidates") > 0).any((1, 2, 3)) for one in (small, store, expected)]
    assert (held[1] == held[2]).all() and 0 < held[1].sum() < len(held[1])
    turned = store.texts("expression", range(store.num_rows)).index("something else")
    assert held[1][turned] and held[0].sum() == len(held[0]) - 1


def test_another_proposer_makes_masks_of_known_answers(config, tmp_path, capsys):
    soft = run(config, FakeEngine())
    hard_config = apply_overrides(config, ["proposer.kind=box", "engine.chunk_rows=30"])
    plan = describe_plan(hard_config)
    assert (plan["reused"], plan["answers"]) == ({}, {soft.path.name: soft.num_rows})
    engine = FakeEngine()
    hard = PriorStore(run_priors(hard_config, engine_factory=engine.factory))
    assert (engine.num_started, engine.num_requests) == (0, 0)
    said = capsys.readouterr().err
    assert (
        f"masks are made anew of {soft.num_rows} answers that are known ({soft.num_rows} from {soft.path.name})"
        in said
    )
    assert f"{soft.num_rows} pairs in" in said
    asked = alone(hard_config, tmp_path)
    assert_same_rows(asked, hard)
    assert (hard.column("proposal") != soft.column("proposal")).any()
    assert verify_store(hard.path)["ok"] and hard.attrs["canary"] == soft.attrs["canary"]
    status = store_status(hard.path)
    assert (status["reused"], status["answers"]) == ({}, {soft.path.name: soft.num_rows})


def test_masks_of_known_answers_look_at_the_images(config, tmp_path):
    """SAM 2, and what it proposes whatever is asked; an image has candidates if no answer about it holds a box."""

    def some_answers(request):
        boxless = Answer(text="I see none.", tokens=(), num_tokens=3, finish_reason="stop")
        return boxless if len(request.expression) % 3 == 0 else random_box_answer(request)

    small = run(apply_overrides(config, ["splits=val"]), FakeEngine(some_answers))
    changes = ["proposer.kind=sam2", f"proposer.path={WEIGHTS_DIR}", "splits=val", "engine.chunk_rows=50"]
    changes += [
        "proposer.candidates.num=4",
        "proposer.candidates.prompts=boxes",
        "proposer.candidates.side=16",
    ]
    changes += ["proposer.candidates.points_per_side=2"]
    changes += ["proposer.candidates.min_iou=0", "proposer.candidates.min_stability=0"]
    sam_config, engine = apply_overrides(config, changes), FakeEngine()
    store = run(sam_config, engine)
    assert engine.num_started == 0 and store_status(store.path)["answers"] == {
        small.path.name: small.num_rows
    }
    assert len(store_status(store.path)["status_counts"]) == 2
    assert_same_rows(alone(sam_config, tmp_path, FakeEngine(some_answers)), store)
    assert np.isfinite(store.column("proposer_iou")).any() and (store.column("candidates") > 0).any()


def test_a_field_that_is_not_read_asks_nobody_again(config):
    store = run(config, FakeEngine())
    engine = FakeEngine()
    unread = ["model.sample_temperature=0.2", "proposer.multimask=true", "proposer.dtype=bfloat16"]
    assert run(apply_overrides(config, unread), engine).path == store.path
    hard = run(apply_overrides(config, ["proposer.kind=box", "proposer.softness=0.5", *unread]), engine)
    assert engine.num_started == 0 and hard.path != store.path


def test_a_soft_box_needs_more_than_the_box(config):
    """What the model knew about each edge is in no store."""
    run(apply_overrides(config, ["proposer.kind=box"]), FakeEngine())
    engine = FakeEngine()
    assert describe_plan(config)["answers"] == {}
    store = run(config, engine)
    assert engine.num_requests == store.num_rows


def test_shards_with_new_rows_are_asked_for_beside_those_of_known_answers(config, tmp_path):
    run(apply_overrides(config, ["splits=train"]), FakeEngine())
    hard_config, engine = apply_overrides(config, ["proposer.kind=box"]), FakeEngine()
    store = run(hard_config, engine)
    answers = store_status(store.path)["answers"]
    assert sum(answers.values()) == 512 and 0 < engine.num_requests == store.num_rows - 512
    assert_same_rows(alone(hard_config, tmp_path), store)


def test_the_first_pairs_are_a_store_of_their_own_and_are_taken_over(config, tmp_path, capsys):
    few_config = apply_overrides(config, ["limit=30"])
    plan = describe_plan(few_config)
    assert (plan["pairs"], plan["splits"]) == (30, {"train": 30})
    whole_plan = describe_plan(config)
    assert plan["limit"] == f"the first 30 of {whole_plan['pairs']} pairs" and whole_plan["limit"] is None
    few = run(few_config, FakeEngine())
    assert (few.num_rows, few.limit, store_status(few.path)["limit"]) == (30, 30, 30)
    assert few.attrs["fingerprint_fields"]["limit"] == 30 and few.path == Path(plan["store"])
    assert verify_store(few.path)["ok"]
    engine = FakeEngine()
    whole = PriorStore(run_priors(config, engine_factory=engine.factory))
    assert (
        f"30 of {whole.num_rows} pairs are known already (30 from {few.path.name})" in capsys.readouterr().err
    )
    assert (engine.num_requests, whole.limit) == (whole.num_rows - 30, None)
    assert whole.sample_ids[:30] == few.sample_ids and "limit" not in whole.attrs["fingerprint_fields"]
    assert_same_rows(alone(config, tmp_path), whole)
    fewer = run(apply_overrides(config, ["limit=10"]), engine := FakeEngine())
    assert engine.num_started == 0 and fewer.num_rows == 10


def test_a_limit_beyond_the_pairs_is_the_whole_store(config):
    whole = describe_plan(config)
    beyond = describe_plan(apply_overrides(config, ["limit=99999"]))
    assert (beyond["store"], beyond["limit"]) == (whole["store"], None)
