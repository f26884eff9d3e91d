"""Failed rows: what is said of them, and that asking for them again changes no other row."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.store import writer
from shared.store.layout import read_header
from shared.store.marks import read_mark
from shared.store.reader import PriorStore
from shared.store.schema import first_rows
from shared.store.verify import verify_store
from shared.types import STATUS_CODES, AnswerStatus
from stage1_priors import workers
from stage1_priors.failures import MEND_THE_CAUSE, MEND_THE_IMAGES, failed_shards, told_failures
from stage1_priors.job import make_job
from stage1_priors.recipes import import_masks
from stage1_priors.run import run_priors
from stage1_priors.workers import run_workers
from tests.stage1_priors.fake_engine import FakeEngine, box_answer, random_box_answer
from tests.stage1_priors.sam_folders import save_random_sam2

ENGINE_ERROR, OK = STATUS_CODES[AnswerStatus.ENGINE_ERROR], STATUS_CODES[AnswerStatus.OK]


def fails_on(word, reason="the prompt has {} tokens"):
    def answer_of(request):
        if word in request.expression:
            raise RuntimeError(reason.format(1000 + len(request.expression)))
        return random_box_answer(request)

    return FakeEngine(answer_of)


def other_answers():
    """An engine that would change every row it is asked about."""
    return FakeEngine(lambda request: box_answer((1, 2, 30, 40)))


def run(config, engine, **options):
    return PriorStore(run_priors(config, engine_factory=engine.factory, quiet=True, **options))


def copies(store):
    return {name: store.column(name).copy() for name in store.fields}


@pytest.fixture
def generous(config):
    return apply_overrides(config, ["error_ceiling=1"])


@pytest.fixture
def failed(generous):
    """A store whose rows about stars failed: its columns and which rows they are."""
    store = run(generous, fails_on("star"))
    failed_N = store.column("status") == ENGINE_ERROR
    assert 0 < failed_N.sum() < store.num_rows
    return store, copies(store), failed_N


def test_the_last_line_names_the_commonest_failure_and_the_remedy(generous, capsys):
    store = PriorStore(run_priors(generous, engine_factory=fails_on("star").factory))
    num = int((store.column("status") == ENGINE_ERROR).sum())
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        "pairs in" in said
        and f"; failed: {num} engine_error; {num} so: 'RuntimeError: the prompt has 10" in said
    )
    assert said.endswith(
        "Mend the cause, then the same command with --retry-failed asks for these rows again"
    )
    run_priors(generous, engine_factory=FakeEngine().factory)
    again = capsys.readouterr().err.splitlines()[-1]
    assert "nothing to do; failed: " in again and "--retry-failed" in again


def test_reasons_that_differ_in_a_file_or_a_number_are_one_and_the_first_is_shown(generous):
    asked = []

    def answer_of(request):
        if "star" not in request.expression:
            return random_box_answer(request)
        asked.append(request.expression)
        if len(asked) == 1:
            raise RuntimeError("out of luck")
        raise RuntimeError(f"cannot open /photos/{'abc'[len(asked) % 3]}.jpg of this pair")

    store = run(generous, FakeEngine(answer_of))
    failed = store.column("status") == ENGINE_ERROR
    reasons = [text for text in store.texts("raw_text", np.flatnonzero(failed)) if "/photos/" in text]
    assert len(reasons) == failed.sum() - 1 and len(set(reasons)) == 3
    assert f"; {len(reasons)} so: {reasons[0]!r}. Mend" in told_failures(store.path)


def test_a_shard_whose_mark_is_damaged_is_passed_over(failed):
    store, _, _ = failed
    shards = failed_shards(store.path)
    assert len(shards) > 1
    first = min(shards)
    read_header(store.path).done_path(first).write_bytes(b"torn")
    assert failed_shards(store.path) == {shard: count for shard, count in shards.items() if shard != first}


def test_a_store_without_failures_says_nothing_of_them(config, capsys):
    path = run_priors(config, engine_factory=FakeEngine().factory)
    assert "failed" not in capsys.readouterr().err and told_failures(path) == "" and not failed_shards(path)
    assert failed_shards(path.with_name("nowhere.zarr")) == {}


def test_failed_rows_alone_are_asked_again(generous, failed):
    before, columns, failed_N = failed
    infos = [read_mark(read_header(before.path), shard)["info"] for shard in range(2)]
    engine = other_answers()
    after = run(generous, engine, retry_failed=True)
    assert engine.num_requests == failed_N.sum() and after.path == before.path
    for name, column in copies(after).items():
        np.testing.assert_array_equal(column[~failed_N], columns[name][~failed_N], err_msg=name)
    assert (after.column("status")[failed_N] == OK).all()
    np.testing.assert_allclose(after.column("box_raw_xyxy")[failed_N], [[1, 2, 30, 40]] * failed_N.sum())
    assert verify_store(after.path)["ok"] and not failed_shards(after.path)
    assert [read_mark(read_header(after.path), shard)["info"].keys() for shard in range(2)] == [
        info.keys() for info in infos
    ]
    nobody = FakeEngine()
    run(generous, nobody, retry_failed=True)
    assert nobody.num_started == 0


def test_what_fails_again_stays_failed_with_its_new_reason(config, failed):
    """Under the usual ceilings: they are for what nobody asked for before."""
    before, columns, failed_N = failed
    after = run(config, fails_on("star", "still too long"), retry_failed=True)
    assert {*after.texts("raw_text", np.flatnonzero(failed_N))} == {"RuntimeError: still too long"}
    for name in set(columns) - {"raw_text"}:
        np.testing.assert_array_equal(after.column(name), columns[name], err_msg=name)


def test_pending_shards_are_left_and_workers_share_the_failed_ones(generous, failed):
    before, columns, failed_N = failed
    (before.path / "done" / "1.json").unlink()
    engine = FakeEngine()
    run(generous, engine, retry_failed=True, worker=1, num_workers=2)
    assert engine.num_started == 0
    store = run(generous, engine, retry_failed=True, worker=0, num_workers=2)
    assert engine.num_requests == failed_N[:512].sum() and store.done_shards == [0]


def test_rows_that_were_taken_over_are_still_counted(generous, tmp_path):
    small = run(apply_overrides(generous, ["splits=train"]), FakeEngine())
    store = run(generous, fails_on("star"))
    marks = [read_mark(read_header(store.path), shard)["info"].get("reused") for shard in range(2)]
    assert marks[0] == {small.path.name: 512}
    shards = failed_shards(store.path)
    assert [*shards] == [1]
    run(generous, FakeEngine(), retry_failed=True)
    assert [read_mark(read_header(store.path), shard)["info"].get("reused") for shard in range(2)] == marks


@pytest.mark.parametrize("where", ["before the mark is removed", "after", "in the second shard"])
def test_a_kill_loses_nothing_that_cannot_be_asked_again(generous, failed, monkeypatch, where):
    before, columns, failed_N = failed
    publish, calls = writer._publish, []

    def killed(header, shard, blobs, mark):
        calls.append(shard)
        if where == "after" or len(calls) == 2:
            raise KeyboardInterrupt
        publish(header, shard, blobs, mark)

    monkeypatch.setattr(writer, "_publish", killed)
    if where == "before the mark is removed":
        monkeypatch.setattr(writer, "remove_synced", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(generous, FakeEngine(), retry_failed=True)
    monkeypatch.undo()
    assert verify_store(before.path)["ok"]
    run(generous, FakeEngine())
    after = run(generous, FakeEngine(), retry_failed=True)
    assert after.is_complete and not failed_shards(after.path)
    for name, column in columns.items():
        np.testing.assert_array_equal(after.column(name)[~failed_N], column[~failed_N], err_msg=name)


def test_unreadable_images_are_read_again(generous, refshapes_root, tmp_path):
    """With `image_hash=size` the store is the same once a file is there again."""
    root = tmp_path / "data"
    shutil.copytree(refshapes_root, root)
    image = sorted((root / "images").glob("*.jpg"))[0]
    good = image.read_bytes()
    image.write_bytes(bytes(len(good)))
    own = apply_overrides(generous, [f"data.root={root}", "image_hash=size"])
    store = run(own, FakeEngine())
    assert store.status_counts()["image_error"] > 0
    assert f"image_error; {store.status_counts()['image_error']} so: " in told_failures(store.path)
    image.write_bytes(good)
    after = run(own, FakeEngine(), retry_failed=True)
    assert after.path == store.path and after.status_counts() == {"ok": store.num_rows}


@pytest.mark.parametrize("damage", ["cut", "deleted"])
def test_a_mended_image_is_another_store_and_asking_again_says_so(
    generous, refshapes_root, tmp_path, damage, capsys
):
    """Bytes count by default: of the new store nothing has failed, and "no failed rows" would be no help."""
    root = tmp_path / "data"
    shutil.copytree(refshapes_root, root)
    image = sorted((root / "images").glob("*.jpg"))[0]
    good = image.read_bytes()
    image.write_bytes(good[:300]) if damage == "cut" else image.unlink()
    own = apply_overrides(generous, [f"data.root={root}", "engine.kv_cache_gb=1"])
    assert own.image_hash == "content"
    store = PriorStore(run_priors(own, engine_factory=FakeEngine().factory))
    num = store.status_counts()["image_error"]
    said = capsys.readouterr().err.splitlines()[-1]
    assert num and said.endswith(f". {MEND_THE_IMAGES}") and MEND_THE_CAUSE not in said
    image.write_bytes(good)
    told = (
        rf"no such store.*changed: data.images: .*{store.path.name}\)\. Run without --retry-failed: all other"
    )
    with pytest.raises(DataError, match=told):
        run(own, FakeEngine(), retry_failed=True)
    with pytest.raises(DataError, match=told):
        run_workers(own, 2, ["embedded"], retry_failed=True, quiet=True)
    with pytest.raises(DataError, match="Run without --retry-failed: all rows are asked for"):
        run(apply_overrides(own, ["reuse=false"]), FakeEngine(), retry_failed=True)
    engine = FakeEngine()
    after = run(own, engine)
    assert after.path != store.path and engine.num_requests == num
    assert after.status_counts() == {"ok": after.num_rows}


def test_both_remedies_are_told_where_images_and_questions_failed(generous, refshapes_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(refshapes_root, root)
    sorted((root / "images").glob("*.jpg"))[0].write_bytes(b"no image")
    store = run(apply_overrides(generous, [f"data.root={root}"]), fails_on("star"))
    assert told_failures(store.path).endswith(f". {MEND_THE_CAUSE}. {MEND_THE_IMAGES}")


def test_candidates_of_an_image_stay_where_its_first_row_failed(generous, tmp_path):
    settings = [
        "splits=val",
        "proposer.kind=sam2",
        f"proposer.path={save_random_sam2(tmp_path / 'sam2')}",
        "proposer.candidates.num=3",
        "proposer.candidates.side=8",
        "proposer.candidates.prompts=boxes",
        "proposer.candidates.points_per_side=3",
        "proposer.candidates.min_iou=0",
        "proposer.candidates.min_stability=0",
    ]
    own = apply_overrides(generous, settings)
    first = make_job(own).plan.samples[0]
    store = run(own, fails_on(first.expression))
    columns, failed_N = copies(store), store.column("status") == ENGINE_ERROR
    assert failed_N[0] and not failed_N[1] and (first_rows(store.column("image_id"))[:2] == 0).all()
    assert columns["candidates"][0].any()
    after = run(apply_overrides(own, ["proposer.batch_boxes=1"]), FakeEngine(), retry_failed=True)
    np.testing.assert_array_equal(after.column("candidates"), columns["candidates"])
    for name, column in columns.items():
        np.testing.assert_array_equal(after.column(name)[~failed_N], column[~failed_N], err_msg=name)
    assert np.isfinite(after.column("proposer_iou")).all() and not failed_shards(after.path)


def test_masks_from_elsewhere_are_not_asked_again():
    with pytest.raises(DataError, match="--retry-failed asks a model again; masks from elsewhere"):
        run_priors(import_masks(), retry_failed=True)


def test_nor_by_several_workers(refshapes_root, tmp_path):
    own = [
        f"data.root={refshapes_root}",
        "data.dataset=refshapes",
        f"source={tmp_path}",
        f"cache_root={tmp_path}",
    ]
    config = apply_overrides(import_masks(), own)
    (tmp_path / "refshapes.unc.1.png").write_bytes(b"a mask")
    with pytest.raises(DataError, match="--retry-failed asks a model again; masks from elsewhere"):
        run_workers(config, 2, ["import"], retry_failed=True, quiet=True)


def test_workers_are_told_to_ask_again(generous, failed, monkeypatch, capsys):
    store, _, failed_N = failed
    told = []

    def start(worker, num_workers, arguments, dealt):
        told.append(arguments)
        code = "raise SystemExit(0)"
        return subprocess.Popen([sys.executable, "-c", code])

    monkeypatch.setattr(workers, "_start", start)
    monkeypatch.setattr(workers, "STAGGER_S", 0.0)
    assert run_workers(generous, 2, ["embedded"], quiet=True) == store.path and not told
    small = apply_overrides(generous, ["engine.kv_cache_gb=1"])
    assert run_workers(small, 2, ["embedded"], retry_failed=True) == store.path
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said.startswith(f"{store.path}: failed: {failed_N.sum()} engine_error; ") and "--retry-failed" in said
    )
    assert told == [["embedded", "--retry-failed"]] * 2
