"""Boxed scenes: reproducible, apart from each other, boxes where the masks are."""

import numpy as np
import pytest

from shared.seeding import rng
from stage1_priors.answers import box_iou
from stage1_priors.tiny_sam.data import (
    MIN_JITTERED_IOU,
    collate,
    draw_boxed,
    draw_boxes_alone,
    filled_boxes,
    jitter_box,
)
from stage1_priors.tiny_sam.model import build_processor
from stage1_priors.tiny_sam.score import HELD_OUT


def test_a_scene_is_a_function_of_its_key():
    first, again, other = (
        draw_boxed("sam", 0, 5, 3),
        draw_boxed("sam", 0, 5, 3),
        draw_boxed(HELD_OUT, 0, 5, 3),
    )
    assert np.array_equal(first.image, again.image) and np.array_equal(first.boxes_K4, again.boxes_K4)
    assert not np.array_equal(first.image, other.image)


def test_tight_boxes_enclose_their_masks():
    scene = draw_boxed("sam", 1, 0, 9, jittered=0.0)
    np.testing.assert_array_equal(scene.boxes_K4, scene.tight_K4)
    for box, mask in zip(scene.boxes_K4, scene.masks_KSS, strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_jitter_moves_boxes_but_not_far():
    box = np.array([40, 50, 80, 70], np.float32)
    moved = np.stack([jitter_box(box, rng("jitter", index)) for index in range(200)])
    overlap = box_iou(moved, np.repeat(box[None], 200, 0))
    assert (overlap >= MIN_JITTERED_IOU).all() and 0.6 < overlap.mean() < 0.95
    edge = jitter_box(np.array([0, 0, 128, 128], np.float32), rng("edge"))
    assert edge.min() >= 0 and edge.max() <= 128


def test_batches_hold_the_share_of_each_cell():
    scenes = [draw_boxed("sam", 2, index, 3) for index in range(2)]
    batch = collate(scenes, build_processor())
    assert batch.pixel_B3SS.shape == (2, 3, 128, 128) and batch.box_BK4.shape == (2, 3, 4)
    mask = scenes[1].masks_KSS[2]
    assert batch.target_BKMM[1, 2, 5, 10] == pytest.approx(mask[20:24, 40:44].mean())
    assert batch.target_BKMM.sum() * 16 == pytest.approx(sum(scene.masks_KSS.sum() for scene in scenes))


def test_filled_boxes_by_hand():
    got = filled_boxes(np.array([[32, 0, 96, 64]], np.float32), 4)[0]
    assert got.tolist() == [[False, True, True, False]] * 2 + [[False] * 4] * 2
    box, mask = draw_boxes_alone(0, 0, 7)
    assert box.shape == (1, 7, 4) and mask.shape == (1, 7, 32, 32) and box.min() >= 0 and box.max() <= 128
    area = ((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])).numpy()
    np.testing.assert_allclose(mask.sum((-1, -2)).numpy() * 16, area, rtol=0.4)
