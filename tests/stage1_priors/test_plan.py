"""The plan: every sample once, in an order that depends on nothing but the data."""

import random

import pytest

from shared.errors import DataError
from shared.types import Sample
from stage1_priors.plan import make_plan, shards_of_worker


def sample(sent_id, image_id, split):
    return Sample(
        sample_id=f"d.s.{sent_id}",
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        height=10,
        width=10,
        ref_id=sent_id,
        ann_id=sent_id,
        sent_id=sent_id,
        expression="same words",
        split=split,
    )


SAMPLES = [sample(n, (n * 7) % 40, ("train", "val", "testA")[(n * 7) % 40 % 3]) for n in range(333)]


@pytest.mark.parametrize("shard_rows", [1, 10, 333, 512])
def test_no_drop_no_double(shard_rows):
    plan = make_plan(SAMPLES, ("val", "train", "testA"), shard_rows, "d")
    rows = [s.sample_id for shard in range(plan.num_shards) for s in plan.shard(shard)]
    assert rows == [s.sample_id for s in plan.samples]
    assert sorted(rows) == sorted(s.sample_id for s in SAMPLES)
    assert [plan.rows_of(shard) for shard in range(plan.num_shards)] == [
        len(plan.shard(shard)) for shard in range(plan.num_shards)
    ]


def test_order_does_not_depend_on_the_order_given():
    shuffled = SAMPLES.copy()
    random.Random(0).shuffle(shuffled)
    assert make_plan(shuffled, ("train", "val"), 64, "d") == make_plan(SAMPLES, ("train", "val"), 64, "d")


def test_order_is_by_split_image_sentence_and_id():
    shuffled = SAMPLES.copy()
    random.Random(1).shuffle(shuffled)
    plan = make_plan(shuffled, ("testA", "val", "train"), 64, "d")
    expected = sorted(SAMPLES, key=lambda s: (plan.splits.index(s.split), s.image_id, s.sent_id, s.sample_id))
    assert list(plan.samples) == expected


def test_splits_come_in_the_order_asked_and_images_are_together():
    plan = make_plan(SAMPLES, ("val", "train"), 64, "d")
    splits = [s.split for s in plan.samples]
    assert splits == sorted(splits, reverse=True) and "testA" not in splits
    images = [s.image_id for s in plan.samples]
    assert len([1 for a, b in zip(images, images[1:], strict=False) if a != b]) == len(set(images)) - 1


def test_refusals():
    with pytest.raises(DataError, match="split 'testB' has no sentences"):
        make_plan(SAMPLES, ("train", "testB"), 64, "d")
    with pytest.raises(DataError, match=r"'d\.s\.0' occurs twice"):
        make_plan([SAMPLES[0], SAMPLES[0]], (SAMPLES[0].split,), 64, "d")


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_workers_share_the_shards_whatever_is_pending(num_workers):
    pending = [0, 1, 4, 5, 6, 9]
    parts = [shards_of_worker(pending, worker, num_workers) for worker in range(num_workers)]
    assert sorted(sum(parts, [])) == pending
    for worker, part in enumerate(parts):
        assert all(shard % num_workers == worker for shard in part)
    with pytest.raises(DataError):
        shards_of_worker(pending, num_workers, num_workers)


def test_what_one_worker_left_is_dealt_to_all():
    """Of eight workers the fourth died: by number all its shards would be one worker's again."""
    left = list(range(3, 624, 8))
    parts = [shards_of_worker(left, worker, 8, left) for worker in range(8)]
    assert sorted(map(len, parts)) == [9, 9, 10, 10, 10, 10, 10, 10] and sorted(sum(parts, [])) == left


def test_a_worker_that_starts_later_keeps_to_what_was_dealt():
    dealt = [2, 3, 8, 9, 11]
    still = [3, 8, 11, 12]  # others have written some since then, and one was damaged
    assert shards_of_worker(still, 0, 2, dealt) == [8, 11] and shards_of_worker(still, 1, 2, dealt) == [3]


def test_a_limit_keeps_the_first_in_the_order_of_the_store():
    whole = make_plan(SAMPLES, ("val", "train"), 64, "d")
    plan = make_plan(SAMPLES, ("val", "train"), 64, "d", limit=7)
    assert plan.samples == whole.samples[:7] and plan.left_out == len(whole.samples) - 7
    assert (plan.num_shards, plan.splits) == (1, whole.splits)
    assert make_plan(SAMPLES, ("val", "train"), 64, "d", limit=len(whole.samples)) == whole
