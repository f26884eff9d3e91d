import dataclasses
import json
import math
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.config import apply_overrides
from shared.errors import DataError
from shared.jsonl import load_jsonl
from shared.refer import MaskAccessError, load_refer
from shared.store.find import find_stores
from shared.store.reader import PriorStore
from stage2_train.batch import Batch
from stage2_train.data import BatchPlan, BatchSource, ResizedReader, make_split
from stage2_train.inputs import batch_plan, open_inputs
from stage2_train.loader import _KeyedDataset, iterate
from stage2_train.order import Draw, draw, group_by_ref, micro_positions
from stage2_train.prior_source import MisplacedPriors, StorePriors, choose_store, made_alike, open_priors
from stage2_train.text import Tokenizer
from stage2_train.text_augment import StrongTextConfig
from stage2_train.transforms import StrongConfig, WeakConfig
from stage2_train.weak_labels import collect_weak_labels
from tests.stage2_train.miniature import (
    NO_BOX_EVERY,
    mini_config,
    plain_config,
    segmentor_config,
    write_priors,
)

PLAN = BatchPlan(
    seed=1,
    height=24,
    width=32,
    batch_labelled=4,
    batch_unlabelled=4,
    accumulation=1,
    rank=0,
    num_processes=1,
    cache_mib=64,
    weak=WeakConfig(),
    strong=StrongConfig(),
    text=StrongTextConfig(table="shapes", candidates=3),
)


@pytest.fixture(scope="module")
def make_source(mini_root: Path) -> Callable[..., BatchSource]:
    config = mini_config(mini_root)
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    tokenise = Tokenizer(segmentor_config(mini_root / "tokenizer"))
    priors = open_priors(choose_store(config, dataset), config, dataset, dataset.samples("train"))

    def make(fraction: float = 0.25, prior: bool = True, **changes: object) -> BatchSource:
        plan = dataclasses.replace(PLAN, **changes)  # type: ignore[arg-type]
        return BatchSource(
            dataset, make_split(dataset, fraction, 0), plan, tokenise, priors if prior else None
        )

    return make


def equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors are equal; NaN, the trust of a row without confidence, equals itself."""
    return np.array_equal(one.numpy(), two.numpy(), equal_nan=one.is_floating_point())


def same(a: Batch, b: Batch) -> bool:
    for part in ("labelled", "unlabelled"):
        for field in dataclasses.fields(getattr(a, part)):
            one, two = getattr(getattr(a, part), field.name), getattr(getattr(b, part), field.name)
            if not (equal(one, two) if isinstance(one, torch.Tensor) else one == two):
                return False
    return (a.step, a.micro) == (b.step, b.micro)


# --- split -------------------------------------------------------------------------------------------------------


def test_split_is_by_image(mini_root: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    split = make_split(dataset, 0.25, 0)
    own, other = ({s.image_id for ref in refs for s in ref} for refs in (split.labelled, split.unlabelled))
    assert own == set(split.image_ids) and not own & other
    assert own | other == set(dataset.train_image_ids()) and len(own) == 4
    summary = split.summary()
    assert summary["num_refs"] + summary["num_unlabelled_refs"] == len(group_by_ref(dataset.samples("train")))
    assert summary["num_sentences"] + summary["num_unlabelled_sentences"] == len(dataset.samples("train"))


def test_split_from_a_file(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    chosen = dataset.train_image_ids()[3:5]
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(chosen))
    assert list(make_split(dataset, 0.9, 7, str(path)).image_ids) == chosen
    names = dataset.image_names()
    path.write_text("".join(f"{names[image_id]}\n" for image_id in chosen))
    assert list(make_split(dataset, 0.9, 7, str(path)).image_ids) == chosen
    path.write_text(json.dumps([*chosen, 999_999]))
    with pytest.raises(DataError, match="999999"):
        make_split(dataset, 0.9, 7, str(path))


def test_what_nobody_has_drawn_is_unlabelled_beside_what_somebody_has(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    mask = [[1, 1, 5, 1, 5, 5]]
    rows: list[dict] = [{"expression": "the mug", "mask": mask}, {"expression": "the lid"}]
    (tmp_path / "photos.jsonl").write_text(
        "".join(json.dumps({"image": "a.png", **row}) + "\n" for row in rows)
    )
    split = make_split(load_jsonl(tmp_path / "photos.jsonl"), 1.0, 0)
    ((mug,),), ((lid,),) = split.labelled, split.unlabelled
    assert (mug.expression, lid.expression) == ("the mug", "the lid")


# --- order -------------------------------------------------------------------------------------------------------


def test_every_cycle_holds_every_reference_once(mini_root: Path) -> None:
    refs = group_by_ref(load_refer(mini_root / "data", "refshapes", "unc").samples("train"))
    for cycle in range(3):
        drawn = [draw(5, "unlabelled", cycle * len(refs) + i, refs) for i in range(len(refs))]
        assert sorted(d.sample.ref_id for d in drawn) == sorted(ref[0].ref_id for ref in refs)
        assert {d.cycle for d in drawn} == {cycle}
    orders = {tuple(draw(s, "unlabelled", i, refs).sample.ref_id for i in range(len(refs))) for s in range(3)}
    assert len(orders) == 3


def test_every_cycle_and_every_stream_has_an_order_of_its_own(mini_root: Path) -> None:
    refs = group_by_ref(load_refer(mini_root / "data", "refshapes", "unc").samples("train"))
    orders = {
        tuple(draw(5, stream, cycle * len(refs) + i, refs).sample.ref_id for i in range(len(refs)))
        for stream in ("labelled", "unlabelled")
        for cycle in range(3)
    }
    assert len(orders) == 6


def test_references_to_one_object_are_drawn_apart(mini_root: Path) -> None:
    sample = load_refer(mini_root / "data", "refshapes", "unc").samples("train")[0]
    other = dataclasses.replace(sample, ref_id=sample.ref_id + 1)
    assert group_by_ref([sample, other, sample]) == [(sample, sample), (other,)]


def test_sentences_are_drawn_from_the_reference(mini_root: Path) -> None:
    refs = group_by_ref(load_refer(mini_root / "data", "refshapes", "unc").samples("train"))
    longest = max(range(len(refs)), key=lambda i: len(refs[i]))
    only = [refs[longest]]
    seen = {draw(0, "unlabelled", position, only).sample.sent_id for position in range(60)}
    assert seen == {sample.sent_id for sample in refs[longest]}


@pytest.mark.parametrize(("accumulation", "num_processes"), [(1, 1), (2, 1), (1, 4), (3, 2), (2, 6)])
def test_shares_join_to_the_global_batch(accumulation: int, num_processes: int) -> None:
    joined = [
        position
        for micro in range(accumulation)
        for rank in range(num_processes)
        for position in micro_positions(
            5, micro, rank, batch=24, accumulation=accumulation, num_processes=num_processes
        )
    ]
    assert joined == list(range(120, 144))


# --- batches -----------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_the_key(make_source: Callable[..., BatchSource]) -> None:
    forwards, backwards = make_source(), make_source()
    late_first = [backwards(key) for key in (3, 2, 1, 0)][::-1]
    assert all(same(forwards(key), late_first[key]) for key in range(4))
    assert not same(forwards(0), make_source(seed=2)(0))


@pytest.mark.parametrize(("probability", "side"), [(0.0, "left"), (1.0, "right")])
def test_words_are_mirrored_with_their_image(
    make_source: Callable[..., BatchSource], probability: float, side: str
) -> None:
    source = make_source(weak=WeakConfig(flip_probability=probability))
    labelled, unlabelled = (
        dataclasses.replace(refs[0][0], expression="star on the left")
        for refs in (source.split.labelled, source.split.unlabelled)
    )
    batch = source.of([labelled], [unlabelled])
    ids_BT, token_mask_BT = source.tokenise([f"star on the {side}"])
    assert not equal(ids_BT, source.tokenise(["star on the top"])[0])
    assert equal(batch.labelled.ids_BT, ids_BT)
    assert batch.unlabelled is not None
    weak_T, mask_T = batch.unlabelled.candidate_ids_BKT[0, 0], batch.unlabelled.candidate_mask_BKT[0, 0]
    assert equal(weak_T[mask_T], ids_BT[token_mask_BT])


def test_views_are_drawn_anew_in_every_cycle_and_every_run(make_source: Callable[..., BatchSource]) -> None:
    source, other = make_source(), make_source(seed=2)
    sample = source.split.unlabelled[0][0]

    def noise(source: BatchSource, cycle: int) -> torch.Tensor:
        return source._unlabelled([Draw(cycle=cycle, sample=sample)]).noise_B2

    assert torch.equal(noise(source, 0), noise(source, 0))
    assert len({tuple(one[0].tolist()) for one in (noise(source, 0), noise(source, 1), noise(other, 0))}) == 3


def test_no_two_draws_of_a_sample_share_their_numbers(
    make_source: Callable[..., BatchSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, purposes = make_source(), list[str]()
    real = BatchSource._rng

    def noted(self: BatchSource, item: Draw, purpose: str) -> np.random.Generator:
        purposes.append(purpose)
        return real(self, item, purpose)

    monkeypatch.setattr(BatchSource, "_rng", noted)
    source._unlabelled([Draw(cycle=0, sample=source.split.unlabelled[0][0])])
    assert len(purposes) == len(set(purposes)) == 6


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (0, 2), (0, 9)])
def test_reading_ahead_changes_nothing(
    make_source: Callable[..., BatchSource], workers: int, prefetch: int
) -> None:
    source = make_source()
    read = list(iterate(source, range(2, 6), workers=workers, prefetch=prefetch))
    assert all(same(batch, source(key)) for batch, key in zip(read, range(2, 6), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_worker_processes_change_nothing(make_source: Callable[..., BatchSource]) -> None:
    source = make_source()
    read = list(iterate(source, range(3), workers=2, prefetch=1))
    assert all(same(batch, source(key)) for batch, key in zip(read, range(3), strict=True))


@pytest.mark.filterwarnings("ignore")
def test_forked_workers_read_what_this_process_has_open(make_source: Callable[..., BatchSource]) -> None:
    """Store, images and tokenizer are in use already; our own loader spawns its workers (above)."""
    source = make_source()
    expected = [source(key) for key in range(3)]
    loader = torch.utils.data.DataLoader(
        _KeyedDataset(source),
        batch_size=None,
        sampler=[2, 1, 0],
        num_workers=2,
        multiprocessing_context="fork",
        timeout=120,
    )
    assert all(same(batch, expected[batch.step]) for batch in loader)
    assert all(same(source(key), expected[key]) for key in range(3))  # nor did they disturb this process


def test_cache_changes_nothing(make_source: Callable[..., BatchSource]) -> None:
    kept, decoded = make_source(), make_source(cache_mib=0)
    assert kept.reader.keeps and not decoded.reader.keeps
    assert all(same(kept(key), decoded(key)) for key in range(3))
    assert all(same(kept(key), decoded(key)) for key in range(3))


@pytest.mark.parametrize(("cache_mib", "kept"), [(0, False), (64, True)])
def test_reading_on_keeps_nothing_where_images_do_not_fit(
    make_source: Callable[..., BatchSource], cache_mib: int, kept: bool
) -> None:
    """What is held does not grow with the batches read: in two passes, less than one image."""
    source = make_source(cache_mib=cache_mib, height=128, width=128)
    source(0)
    tracemalloc.start()
    for key in range(1, 2 * len(source.split.unlabelled) // PLAN.batch_unlabelled):
        source(key)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    an_image = 128 * 128 * 3
    assert most > an_image and (held > an_image) is kept


def test_a_source_can_be_pickled(make_source: Callable[..., BatchSource]) -> None:
    source = make_source()
    assert same(pickle.loads(pickle.dumps(source))(1), source(1))


@pytest.mark.parametrize(("accumulation", "num_processes"), [(2, 1), (1, 2), (2, 2)])
def test_micro_batches_and_ranks_join_to_the_batch(
    make_source: Callable[..., BatchSource], accumulation: int, num_processes: int
) -> None:
    whole = make_source()(1)
    parts = [
        make_source(accumulation=accumulation, num_processes=num_processes, rank=rank)(accumulation + micro)
        for micro in range(accumulation)
        for rank in range(num_processes)
    ]
    assert all(part.step == 1 for part in parts)
    for name in ("image_BHW3", "target_BHW", "prior_B1HW", "flip_B", "field_uniform_B"):
        joined = torch.cat([getattr(part.labelled, name) for part in parts])
        assert equal(joined, getattr(whole.labelled, name)), name
    for name in ("weak_BHW3", "strong_BHW3", "prior_B1HW", "choice_uniform_B", "noise_B2"):
        joined = torch.cat([getattr(part.unlabelled, name) for part in parts])
        assert equal(joined, getattr(whole.unlabelled, name)), name


def test_labelled_and_unlabelled_images_are_disjoint(make_source: Callable[..., BatchSource]) -> None:
    source = make_source()
    for key in range(6):
        batch = source(key)
        assert batch.unlabelled is not None
        assert {s.image_id for s in batch.labelled.samples} <= set(source.split.image_ids)
        assert not {s.image_id for s in batch.unlabelled.samples} & set(source.split.image_ids)


def test_supervised_source_reads_no_unlabelled(make_source: Callable[..., BatchSource]) -> None:
    batch = make_source(batch_unlabelled=0, prior=False)(0)
    assert batch.unlabelled is None and batch.labelled.prior_B1HW is None


def test_all_labelled_is_refused_where_unlabelled_are_needed(make_source: Callable[..., BatchSource]) -> None:
    with pytest.raises(DataError, match="every train image is labelled"):
        make_source(fraction=1.0)


@pytest.mark.parametrize(
    ("images", "masks", "kept"), [(9, 5, True), (9, 6, False), (10, 2, True), (10, 3, False)]
)
def test_the_limit_counts_images_and_masks(mini_root: Path, images: int, masks: int, kept: bool) -> None:
    """At 256 x 256 an image takes 3/16 MiB and a mask 1/16; 2 MiB hold 32 such parts."""
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    reader = ResizedReader(dataset, 256, 256, num_images=images, num_masks=masks, cache_mib=2)
    assert reader.keeps is kept


def test_a_source_counts_all_it_may_keep(make_source: Callable[..., BatchSource]) -> None:
    """Every image of the train split, and the masks of the labelled objects."""
    split = make_source().split
    images = len({ref[0].file_name for ref in split.labelled + split.unlabelled})
    masks = len({ref[0].ann_id for ref in split.labelled})
    for parts, kept in ((3 * images + masks, True), (3 * images, False)):
        side = math.isqrt(2**20 // parts)  # so many bytes a pixel fill 1 MiB
        assert make_source(height=side, width=side, cache_mib=1).reader.keeps is kept


def test_resized_reader_matches_the_data(mini_root: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    sample = dataset.samples("train")[0]
    reader = ResizedReader(dataset, 128, 128, num_images=1, cache_mib=1)
    assert np.array_equal(reader.mask(sample), dataset.mask(sample))
    assert np.array_equal(reader.image(sample), np.asarray(dataset.image(sample)))
    assert reader.image(sample) is reader.image(sample)
    assert reader.mask(sample) is reader.mask(sample)


def test_unlabelled_masks_cannot_be_reached_from_the_source(make_source: Callable[..., BatchSource]) -> None:
    source = make_source()
    for ref in source.split.unlabelled:
        with pytest.raises(MaskAccessError):
            source.reader.mask(ref[0])
    assert source.reader.mask(source.split.labelled[0][0]).any()


# --- store -------------------------------------------------------------------------------------------------------


def test_rows_without_a_box_are_flagged(mini_root: Path) -> None:
    config = mini_config(mini_root)
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    samples = dataset.samples("train")
    priors = open_priors(choose_store(config, dataset), config, dataset, samples)
    _, has = priors.read([sample.sample_id for sample in samples])
    assert has.tolist() == [row % NO_BOX_EVERY != NO_BOX_EVERY - 1 for row in range(len(samples))]


def test_trust_is_the_same_whatever_else_the_store_holds(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    ids = [sample.sample_id for sample in dataset.samples("train")]
    of_val = [sample.sample_id for sample in dataset.samples("val")]
    narrow, wide, foreign = (
        StorePriors(PriorStore(write_priors(tmp_path / f"{number}.zarr", dataset, splits=splits)))
        for number, splits in enumerate((("train",), ("train", "val"), ("val",)))
    )
    assert np.array_equal(narrow.trust(ids).numpy(), wide.trust(ids).numpy(), equal_nan=True)
    assert np.nanmean(foreign.trust(of_val).numpy()) == pytest.approx(0.5), (
        "without training rows, among its own"
    )


def test_trust_is_the_rank_of_a_rows_confidence(mini_root: Path) -> None:
    config = mini_config(mini_root)
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    samples = dataset.samples("train")
    priors = open_priors(choose_store(config, dataset), config, dataset, samples)
    ids = [sample.sample_id for sample in samples]
    own = priors.store.column("confidence")[priors.store.rows_of(ids)]
    known = own[np.isfinite(own)]
    for trust, value in zip(priors.trust(ids).tolist(), own, strict=True):
        if np.isfinite(value):
            assert trust == pytest.approx(((known < value).mean() + (known <= value).mean()) / 2, abs=1e-6)
        else:
            assert np.isnan(trust)
    misplaced = MisplacedPriors(priors.store, samples, 1.0, 0)
    taken = [misplaced._taken_from.get(one, one) for one in ids]
    assert taken != ids
    assert np.array_equal(misplaced.trust(ids).numpy(), priors.trust(taken).numpy(), equal_nan=True)


def test_no_store_says_what_to_run(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    with pytest.raises(DataError, match="no complete prior store.*`l2l priors run RECIPE`"):
        choose_store(mini_config(mini_root, cache_root=str(tmp_path)), dataset)
    (tmp_path / "theirs.zarr" / "zarr.json").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"no complete prior store.*passed over: .*theirs.zarr/zarr.json: cannot be read"
    ):
        choose_store(mini_config(mini_root, cache_root=str(tmp_path)), dataset)


def test_a_store_made_for_the_file_of_before_is_named(mini_root: Path, monkeypatch) -> None:
    """A phrase was changed: the old store is there, and most of it is taken over by the next."""
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    monkeypatch.setattr(dataset, "fingerprint", lambda: "another")
    config = mini_config(mini_root)
    with pytest.raises(
        DataError, match=r"as it is now \(.*\.zarr was made for other annotations\); run `l2l priors"
    ):
        choose_store(config, dataset)
    (store,) = find_stores(config.cache_root, dataset="refshapes", split_by="unc")
    with pytest.raises(DataError, match="made for other annotations than .* holds now; run `l2l priors run"):
        open_priors(store, config, dataset, [])


def test_the_store_of_the_data_as_they_are_now_is_named_to_a_run_of_the_old_one(
    mini_root: Path, tmp_path: Path
) -> None:
    """A run keeps to the store that it read; its settings are wanted for data that have grown since."""
    config = mini_config(mini_root)
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    now = choose_store(config, dataset)
    old = write_priors(
        tmp_path / "old.zarr", dataset, fingerprint="a" * 16, data={"fingerprint": "of before"}
    )
    told = (
        f"old.zarr: made for other annotations than .* holds now; {now} was made for those, .* store={now}$"
    )
    with pytest.raises(DataError, match=told):
        open_priors(old, config, dataset, [])


def test_several_stores_are_listed(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    for name in ("one", "two"):
        write_priors(tmp_path / f"{name}.zarr", dataset, fingerprint=name * 4)
    config = mini_config(mini_root, cache_root=str(tmp_path))
    with pytest.raises(
        DataError, match=r"2 prior stores.*one\.zarr.*two\.zarr; name one: .*eval`: --store PATH"
    ):
        choose_store(config, dataset)
    assert choose_store(dataclasses.replace(config, store="x.zarr"), dataset) == Path("x.zarr")


def test_of_stores_made_alike_the_widest_counts(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    config = mini_config(mini_root, cache_root=str(tmp_path))
    for name, splits in (("narrow", ("train",)), ("wide", ("train", "val"))):
        write_priors(tmp_path / f"{name}.zarr", dataset, fingerprint=name, splits=splits, model="a")
    assert choose_store(config, dataset) == tmp_path / "wide.zarr"
    write_priors(tmp_path / "aside.zarr", dataset, fingerprint="aside", splits=("train", "testA"), model="a")
    with pytest.raises(DataError, match=r"2 prior stores.*aside\.zarr.*wide\.zarr"):
        choose_store(config, dataset)
    shutil.rmtree(tmp_path / "aside.zarr")
    write_priors(tmp_path / "other.zarr", dataset, fingerprint="other", model="b")
    with pytest.raises(DataError, match=r"2 prior stores.*other\.zarr.*wide\.zarr"):
        choose_store(config, dataset)


def test_an_unfinished_store_is_passed_over_and_refused(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    config, samples = mini_config(mini_root, cache_root=str(tmp_path)), dataset.samples("train")
    begun = write_priors(tmp_path / "begun.zarr", dataset, fingerprint="begun")
    (begun / "done" / "0.json").unlink()
    with pytest.raises(
        DataError, match=r"no complete prior store .*\(unfinished: .*begun\.zarr; run the same"
    ):
        choose_store(config, dataset)
    with pytest.raises(DataError, match=r"begun\.zarr: 1 of 1 shards are not finished"):
        open_priors(begun, config, dataset, samples)
    whole = write_priors(tmp_path / "whole.zarr", dataset, fingerprint="whole")
    assert choose_store(config, dataset) == whole


@pytest.mark.parametrize(("bytes_of_wide", "alike"), [("first", True), ("second", False), ("", True)])
def test_stores_of_other_bytes_of_their_images_are_not_alike(
    mini_root: Path, tmp_path: Path, bytes_of_wide: str, alike: bool
) -> None:
    """Where one does not know them, they are taken for the same."""
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    config = mini_config(mini_root, cache_root=str(tmp_path))
    write_priors(tmp_path / "narrow.zarr", dataset, fingerprint="narrow", model="a", images="first")
    both = ("val", "train")
    write_priors(
        tmp_path / "wide.zarr", dataset, fingerprint="wide", splits=both, model="a", images=bytes_of_wide
    )
    if alike:
        assert choose_store(config, dataset) == tmp_path / "wide.zarr"
    else:
        with pytest.raises(DataError, match=r"2 prior stores"):
            choose_store(config, dataset)


def test_a_store_of_the_first_pairs_is_made_alike(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    few, whole, others, unknown = (
        PriorStore(
            write_priors(tmp_path / f"{name}.zarr", dataset, fingerprint=name, model=model, limit=limit)
        )
        for name, model, limit in (
            ("few", "a", 5),
            ("whole", "a", None),
            ("others", "b", 5),
            ("unknown", "", 5),
        )
    )
    assert made_alike(few, whole) and made_alike(whole, few)
    assert not made_alike(few, others) and not made_alike(unknown, unknown)


def test_a_store_of_the_first_pairs_is_passed_over_and_refused_in_words(
    mini_root: Path, tmp_path: Path
) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    config, samples = mini_config(mini_root, cache_root=str(tmp_path)), dataset.samples("train")
    few = write_priors(tmp_path / "few.zarr", dataset, fingerprint="few", limit=5)
    with pytest.raises(
        DataError, match=r"no complete prior store .*\(of the first pairs alone: .*few\.zarr; a run "
    ):
        choose_store(config, dataset)
    assert choose_store(dataclasses.replace(config, store=str(few)), dataset) == few
    with pytest.raises(
        DataError,
        match=r"no row for sample '.*'; it holds the first 5 pairs alone of refshapes \(unc\), splits train$",
    ):
        open_priors(few, config, dataset, samples)
    assert open_priors(few, config, dataset, samples[:5]).store.limit == 5
    all_of_them = write_priors(tmp_path / "all.zarr", dataset, fingerprint="all")
    assert choose_store(config, dataset) == all_of_them


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"fingerprint": "0" * 32}, "other annotations"),
        ({"dataset": "refcoco"}, "dataset 'refcoco'"),
        ({"split_by": "google"}, "split_by 'google'"),
    ],
)
def test_a_store_of_other_data_is_refused(mini_root: Path, tmp_path: Path, data: dict, message: str) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    path = write_priors(tmp_path / "other.zarr", dataset, data=data)
    with pytest.raises(DataError, match=message):
        open_priors(path, mini_config(mini_root), dataset, dataset.samples("train"))


def test_a_store_of_other_images_is_refused(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    path = write_priors(tmp_path / "other.zarr", dataset)
    samples = dataset.samples("train")
    assert open_priors(path, mini_config(mini_root), dataset, samples).store.path == path
    samples[3] = dataclasses.replace(samples[3], height=64)
    with pytest.raises(DataError, match=r"row 3 .*\[128, 128\].*\[64, 128\]"):
        open_priors(path, mini_config(mini_root), dataset, samples)


def test_a_store_without_the_samples_is_refused(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    path = write_priors(tmp_path / "val.zarr", dataset, splits=("val",))
    with pytest.raises(DataError, match="no row for sample"):
        open_priors(path, mini_config(mini_root), dataset, dataset.samples("train"))


def test_prior_reader_is_picklable(mini_root: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    priors = pickle.loads(pickle.dumps(StorePriors(_store(mini_root))))
    proposal, _ = priors.read([dataset.samples("train")[0].sample_id])
    assert proposal.dtype == torch.uint8 and proposal.shape == (1, 16, 16)


def _store(mini_root: Path):
    return PriorStore(mini_root / "stores" / "refshapes.test.zarr")


def test_misplaced_priors_are_another_objects_of_the_same_image(mini_root: Path) -> None:
    """All rows at a share of 1, about half at one half, none at 0; the same rows again for the same seed."""
    samples = load_refer(mini_root / "data", "refshapes", "unc").samples("train")
    store = StorePriors(_store(mini_root)).store
    whole = MisplacedPriors(store, samples, 1.0, 0)
    by_id = {sample.sample_id: sample for sample in samples}
    objects: dict[int, set[int]] = {}
    for sample in samples:
        objects.setdefault(sample.image_id, set()).add(sample.ann_id)
    assert len(whole) == sum(len(objects[sample.image_id]) > 1 for sample in samples) > 0
    for own, other in whole._taken_from.items():
        assert by_id[own].image_id == by_id[other].image_id and by_id[own].ann_id != by_id[other].ann_id
    own, other = next(iter(whole._taken_from.items()))
    plain = StorePriors(store)
    assert torch.equal(whole.read([own])[0], plain.read([other])[0])
    none = MisplacedPriors(store, samples, 0.0, 0)
    inputs = dataclasses.replace(open_inputs(mini_config(mini_root)), priors=none)
    assert inputs.store == {"path": str(store.path), "fingerprint": store.fingerprint}, "of no rows, and read"
    half = MisplacedPriors(store, samples, 0.5, 0)
    assert 0 < len(half) < len(whole) and len(MisplacedPriors(store, samples, 0.0, 0)) == 0
    assert half._taken_from == MisplacedPriors(store, samples, 0.5, 0)._taken_from
    assert half._taken_from != MisplacedPriors(store, samples, 0.5, 1)._taken_from


def test_batches_are_made_as_the_run_says(mini_root: Path) -> None:
    config = dataclasses.replace(
        mini_config(mini_root),
        seed=7,
        accumulation=2,
        weak=WeakConfig(flip_probability=0.25),
        strong=StrongConfig(operations=3),
        text=StrongTextConfig(candidates=4),
    )
    plan = batch_plan(config, rank=1, num_processes=2)
    assert (plan.weak, plan.strong, plan.text) == (config.weak, config.strong, config.text)
    assert (plan.seed, plan.accumulation, plan.rank, plan.num_processes) == (7, 2, 1, 2)
    assert (plan.batch_labelled, plan.batch_unlabelled) == (config.batch_labelled, config.batch_unlabelled)
    assert batch_plan(plain_config(mini_root, "supervised")).batch_unlabelled == 0


def test_a_run_misplaces_priors_by_its_own_seed(mini_root: Path) -> None:
    """Not by that of the labelled images, which runs that are compared have in common."""
    config = dataclasses.replace(mini_config(mini_root), misplaced_priors=0.5)

    def taken(seed: int, split_seed: int) -> dict[str, str]:
        inputs = open_inputs(dataclasses.replace(config, seed=seed, split_seed=split_seed))
        assert isinstance(inputs.priors, MisplacedPriors)
        return inputs.priors._taken_from

    assert taken(1, 2) == taken(1, 3) != taken(2, 2)


def test_labels_are_drawn_by_the_seed_of_the_split(mini_root: Path) -> None:
    """Of images and of points: runs of several seeds are given the same ones."""
    config = apply_overrides(plain_config(mini_root, "omni_res"), ["omni_res.weak_label=point"])
    one, other = (open_inputs(dataclasses.replace(config, seed=seed, split_seed=3)) for seed in (1, 2))
    split = make_split(one.dataset, config.fraction, 3)
    samples = [sample for ref in split.unlabelled for sample in ref]
    assert one.split.image_ids == other.split.image_ids == split.image_ids
    points = collect_weak_labels(one.dataset, samples, "point", 3).read(samples)
    for inputs in (one, other):
        assert inputs.weak_labels is not None and equal(inputs.weak_labels.read(samples), points)
    assert not equal(collect_weak_labels(one.dataset, samples, "point", 4).read(samples), points)
