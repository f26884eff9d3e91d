"""Metrics by hand: small masks, the empty union, the threshold itself, merging."""

import random

import numpy as np
import pytest
import torch

from shared.metrics import LENGTH_BUCKETS, SegmentationMeter, iou, iou_counts


def meter_of(rows):
    meter = SegmentationMeter()
    for sample_id, inter, union in rows:
        meter.update(sample_id, inter, union)
    return meter


def test_counts_of_two_masks():
    pred = np.array([[1, 1, 0], [0, 1, 0]], dtype=bool)
    true = np.array([[1, 0, 0], [0, 1, 1]], dtype=bool)
    assert iou_counts(pred, true) == (2, 4)
    assert iou_counts(torch.from_numpy(pred), torch.from_numpy(true)) == (2, 4)
    assert all(type(count) is int for count in iou_counts(pred, true))


def test_counts_refuse_other_kinds_and_shapes():
    mask = np.ones((2, 2), dtype=bool)
    with pytest.raises(AssertionError):
        iou_counts(mask.astype(np.uint8), mask)
    with pytest.raises(AssertionError):
        iou_counts(mask, np.ones((2, 1), dtype=bool))


def test_four_sentences_by_hand():
    # IoU: 90/100 = 0.9, 3/4 = 0.75, 1/10 = 0.1, 0/0 counts 0.
    result = meter_of([("a", 90, 100), ("b", 3, 4), ("c", 1, 10), ("d", 0, 0)]).result()
    assert result == {
        "oiou": 94 / 114,
        "miou": pytest.approx((0.9 + 0.75 + 0.1) / 4, abs=1e-15),
        "pr@0.5": 0.5,
        "pr@0.6": 0.5,
        "pr@0.7": 0.5,
        "pr@0.8": 0.25,
        "pr@0.9": 0.25,
        "num": 4,
    }


def test_lengths_fall_where_their_names_say():
    fewest = 1
    for name, most in LENGTH_BUCKETS:
        assert name in (f"{fewest}-{most}", f"{fewest}+")
        fewest = most + 1


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
def test_a_sentence_on_the_threshold_counts(tenths):
    key = f"pr@{tenths / 10}"
    assert meter_of([("a", 10 * tenths, 100)]).result()[key] == 1
    assert meter_of([("a", 10 * tenths - 1, 100)]).result()[key] == 0


def test_an_empty_union_is_no_division():
    assert iou(0, 0) == 0.0
    assert meter_of([("a", 0, 0)]).result()["oiou"] == 0.0


def test_each_sentence_counts_once():
    meter = meter_of([("a", 1, 2)])
    with pytest.raises(AssertionError, match="a counted twice"):
        meter.update("a", 1, 2)


def test_impossible_counts_and_empty_meters_are_refused():
    with pytest.raises(AssertionError, match="intersection 3"):
        meter_of([("a", 3, 2)])
    with pytest.raises(AssertionError, match="no sentence"):
        SegmentationMeter().result()


def test_result_does_not_depend_on_the_order():
    draw = random.Random(0)
    rows = [
        (f"s{index}", inter, inter + draw.randrange(1, 999))
        for index in range(101)
        for inter in [draw.randrange(999)]
    ]
    whole = meter_of(rows).result()
    draw.shuffle(rows)
    assert meter_of(rows).result() == whole and whole["num"] == 101
