import dataclasses
import math
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.errors import DataError
from shared.refer import MaskAccessError, load_refer
from stage2_train.batch import Batch
from stage2_train.batch_source import BatchPlan, BatchSource
from stage2_train.loader import iterate
from stage2_train.order import Draw
from stage2_train.reader_processes import KeyedDataset
from stage2_train.split import make_split
from stage2_train.store_choice import choose_store, open_priors
from stage2_train.text import Tokenizer
from stage2_train.text_augment import StrongTextConfig
from stage2_train.transforms import StrongConfig, WeakConfig
from tests.stage2_train.miniature import (
    mini_config,
    segmentor_config,
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
    labelled_part = source._labelled([Draw(cycle=0, sample=labelled)])
    unlabelled_part = source.unlabelled_of([unlabelled])
    ids_BT, token_mask_BT = source.tokenise([f"star on the {side}"])
    assert not equal(ids_BT, source.tokenise(["star on the top"])[0])
    assert equal(labelled_part.ids_BT, ids_BT)
    weak_T, mask_T = unlabelled_part.candidate_ids_BKT[0, 0], unlabelled_part.candidate_mask_BKT[0, 0]
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
        KeyedDataset(source),
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


def test_a_mask_takes_one_byte_a_pixel(make_source: Callable[..., BatchSource]) -> None:
    """On its way from a reader, where memory may be short."""
    target_BHW = make_source()(0).labelled.target_BHW
    assert target_BHW.dtype == torch.bool and target_BHW.any()
    assert target_BHW.nbytes == PLAN.batch_labelled * PLAN.height * PLAN.width


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


def test_steps_of_the_burn_in_read_no_unlabelled_and_later_ones_the_same(
    make_source: Callable[..., BatchSource],
) -> None:
    plain, burning = make_source(), make_source(burn_in_steps=2)
    assert [burning(key).unlabelled is None for key in range(4)] == [True, True, False, False]
    assert burning(1).labelled.samples == plain(1).labelled.samples
    later, same = burning(2).unlabelled, plain(2).unlabelled
    assert later is not None and same is not None and torch.equal(later.strong_BHW3, same.strong_BHW3)


def test_all_labelled_is_refused_where_unlabelled_are_needed(make_source: Callable[..., BatchSource]) -> None:
    with pytest.raises(DataError, match="every train image is labelled"):
        make_source(fraction=1.0)


def test_a_source_counts_all_it_may_keep(make_source: Callable[..., BatchSource]) -> None:
    """Every image of the train split, and the masks of the labelled objects."""
    split = make_source().split
    images = len({ref[0].file_name for ref in split.labelled + split.unlabelled})
    masks = len({ref[0].ann_id for ref in split.labelled})
    for parts, kept in ((3 * images + masks, True), (3 * images, False)):
        side = math.isqrt(2**20 // parts)  # so many bytes a pixel fill 1 MiB
        assert make_source(height=side, width=side, cache_mib=1).reader.keeps is kept


def test_unlabelled_masks_cannot_be_reached_from_the_source(make_source: Callable[..., BatchSource]) -> None:
    source = make_source()
    for ref in source.split.unlabelled:
        with pytest.raises(MaskAccessError):
            source.reader.mask(ref[0])
    assert source.reader.mask(source.split.labelled[0][0]).any()
