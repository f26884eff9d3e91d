"""How much is read ahead: in rows, and in the memory that images take."""

import dataclasses

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.types import Sample
from stage1_priors.chunks import Bounds, bytes_of_images, chunks_of, cut
from stage1_priors.families import QWEN2_5_VL, SizeRules
from stage1_priors.plan import make_plan
from stage1_priors.reuse import nothing_reusable

RULES = SizeRules(
    factor=28,
    min_pixels=28 * 28,
    max_pixels=10_000_000,
    processor_min_pixels=28 * 28,
    processor_max_pixels=10_000_000,
)


def sample(number, image, height=560, width=840):
    return Sample(
        sample_id=str(number),
        image_id=image,
        file_name=f"{image}.jpg",
        height=height,
        width=width,
        ref_id=number,
        ann_id=number,
        sent_id=number,
        expression="x",
        split="train",
    )


def test_parts_hold_so_many_rows_and_bytes():
    sizes = {0: 3, 1: 3, 2: 9, 3: 1, 4: 1, 5: 1}
    samples = [sample(row, image) for row, image in enumerate([0, 0, 0, 1, 1, 2, 3, 4, 4, 4, 4, 5])]

    def bytes_of(one, is_new):
        return sizes[one.image_id] * is_new

    def parts(rows, num_bytes):
        return cut(samples, Bounds(rows=rows, num_bytes=num_bytes, num_ahead=1), bytes_of)

    assert parts(100, 100) == [(0, 18)]
    assert parts(5, 100) == [(0, 6), (5, 11), (10, 2)]
    # Image 2 takes more than there is and stands alone; an image that is cut counts in both parts.
    assert parts(100, 6) == [(0, 6), (5, 9), (6, 3)]
    assert parts(4, 6) == [(0, 6), (4, 3), (5, 9), (6, 2), (10, 2)]
    assert [first for first, _ in parts(1, 1)] == list(range(12))
    again = [sample(row, image) for row, image in enumerate([0, 2, 1, 0])]  # as in another split
    assert cut(again, Bounds(rows=2, num_bytes=100, num_ahead=1), bytes_of) == [(0, 12), (2, 6)]


def test_a_chunk_knows_which_of_its_asked_rows_failed_before():
    plan = make_plan([sample(row, row) for row in range(7)], ("train",), 7, "d")
    known = nothing_reusable(7)
    known.source_N[[0, 3]] = 0
    known.failed_N[[1, 5]] = True
    bounds = Bounds(rows=3, num_bytes=1, num_ahead=1)
    first, second = chunks_of(plan, known, [0], bounds, lambda *_: 0)
    assert [one.sample_id for one in first.asked + second.asked] == ["1", "2", "4", "5", "6"]
    assert (first.failed_A.tolist(), second.failed_A.tolist()) == ([True, False, False], [True, False])
    assert (first.known.tolist(), second.known.tolist()) == ([True, False, False, True, False], [False] * 2)


@pytest.mark.parametrize(
    ("overrides", "first", "next_"),
    [
        ([], 6 * 4 + 4 + 4, 0),
        (["model.dtype=bfloat16"], 6 * 2 + 4 + 4, 0),
        (["model.num_samples=2"], 2 * 6 * 4 + 4 + 4, 0),
        (["engine.caching=false"], 6 * 4 + 4 + 4, 6 * 4),
    ],
)
def test_what_an_image_takes(config, overrides, first, next_):
    """As seen by the model (all of its pixels here), prepared, and kept for the masks; once an image."""
    bytes_of = bytes_of_images(apply_overrides(config, overrides), QWEN2_5_VL, RULES, lambda size_hw: size_hw)
    asked = sample(0, 0)
    assert bytes_of(asked, True) == first * 560 * 840 and bytes_of(asked, False) == next_ * 560 * 840


def test_all_chunks_in_hand_share_the_memory(config):
    bounds = Bounds.of(apply_overrides(config, ["engine.ahead_rows=250", "engine.image_gb=2"]))
    assert bounds == Bounds(rows=100, num_bytes=2**31 // 6, num_ahead=4)


def test_room_is_left_for_a_full_chunk():
    @dataclasses.dataclass
    class Held:
        asked: range
        num_bytes: int

    bounds = Bounds(rows=10, num_bytes=100, num_ahead=3)
    full, half, huge = Held(range(10), 40), Held(range(5), 100), Held(range(1), 300)
    assert bounds.has_room([]) and bounds.has_room([full, full]) and not bounds.has_room([full] * 3)
    assert bounds.has_room([half, half]) and not bounds.has_room([half, half, full])
    assert not bounds.has_room([huge])
    assert Bounds(rows=10, num_bytes=100, num_ahead=1).has_room([])


def test_photos_are_held_by_size_and_coco_images_by_number(config):
    """12 megapixels each, one phrase a photo; and 480 x 640 with seven phrases each, as in RefCOCO."""
    photos = [sample(row, row, 3000, 4000) for row in range(512)]
    coco = [sample(row, row // 7, 480, 640) for row in range(1024)]
    own = apply_overrides(config, ["model.dtype=bfloat16", "engine.chunk_rows=512"])
    rules = dataclasses.replace(RULES, max_pixels=1280 * 28 * 28)
    for kept, fewest in ((lambda size_hw: size_hw, 14), (lambda _: (1024, 1024), 40)):
        bytes_of = bytes_of_images(own, QWEN2_5_VL, rules, kept)
        starts = [first for first, _ in cut(photos, Bounds.of(own), bytes_of)]
        assert fewest <= np.diff(starts).max() <= 60
        assert [first for first, _ in cut(coco, Bounds.of(own), bytes_of)] == [0, 512]
