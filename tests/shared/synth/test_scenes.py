"""Scenes: determinism, occlusion, masks and boxes."""

import numpy as np
import pytest

from shared.seeding import rng
from shared.synth.scenes import COLOURS, SCENE_SIZE_PX, SIZES, SceneObject, SceneStyle, draw_scene, rasterise
from shared.synth.shapes import ANGULAR_SHAPES, ROUND_SHAPES, SHAPES


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(rng("test scenes", index)) for index in range(60)]


def test_a_scene_is_a_function_of_its_generator():
    first, second, other = draw_scene(rng("a", 1)), draw_scene(rng("a", 1)), draw_scene(rng("a", 2))
    assert np.array_equal(first.image_HW3, second.image_HW3)
    assert first.objects == second.objects
    assert not np.array_equal(first.image_HW3, other.image_HW3)


def test_masks_are_disjoint_and_keep_their_visible_share(scenes):
    style = SceneStyle()
    for scene in scenes:
        assert style.num_objects[0] <= len(scene.objects) <= style.num_objects[1]
        assert scene.masks_KHW.sum(axis=0).max() == 1
        for item, mask in zip(scene.objects, scene.masks_KHW, strict=True):
            assert mask.sum() >= style.min_visible * rasterise(item).sum()


def test_occlusion_occurs_and_is_flagged_exactly(scenes):
    flags = []
    for scene in scenes:
        for item, mask, occluded in zip(scene.objects, scene.masks_KHW, scene.occluded_K, strict=True):
            assert occluded == (not np.array_equal(mask, rasterise(item)))
            flags.append(occluded)
    assert 0.02 < np.mean(flags) < 0.6


def test_boxes_are_tight(scenes):
    for scene in scenes[:10]:
        for (x1, y1, x2, y2), mask in zip(scene.boxes_xyxy_px.astype(int), scene.masks_KHW, strict=True):
            assert mask[y1:y2, x1:x2].sum() == mask.sum()
            assert mask[y1, x1:x2].any() and mask[y2 - 1, x1:x2].any()
            assert mask[y1:y2, x1].any() and mask[y1:y2, x2 - 1].any()


def test_sizes_leave_gaps_and_families_cover_all_shapes():
    ends = sorted(SIZES.values())
    assert all(before[1] + 1.5 <= after[0] for before, after in zip(ends, ends[1:], strict=False))
    assert set(ROUND_SHAPES).isdisjoint(ANGULAR_SHAPES)
    assert set(SHAPES) == set(ROUND_SHAPES) | set(ANGULAR_SHAPES)


def test_plain_objects_have_their_colour():
    style = SceneStyle(noise_levels=0, overlap_probability=0.0)
    for index in range(20):
        scene = draw_scene(rng("colour", index), style)
        for item, mask in zip(scene.objects, scene.masks_KHW, strict=True):
            if item.pattern == "plain":
                distances = {
                    name: np.abs(scene.image_HW3[mask].mean(axis=0) - centre).sum()
                    for name, centre in COLOURS.items()
                }
                assert min(distances, key=distances.__getitem__) == item.colour


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_a_mask_inside_its_circle(shape):
    item = SceneObject(
        shape=shape,
        colour="red",
        pattern="plain",
        size="large",
        radius_px=20.0,
        angle_deg=10.0,
        centre_xy_px=(64, 64),
    )
    mask = rasterise(item)
    rows, columns = np.nonzero(mask)
    assert mask.shape == (SCENE_SIZE_PX, SCENE_SIZE_PX)
    assert mask.sum() > 0.2 * np.pi * 20**2
    assert np.hypot(rows + 0.5 - 64, columns + 0.5 - 64).max() <= 20 * 1.15 + 1
    if shape == "ring":
        assert not mask[64, 64]


def test_the_required_family_appears():
    for index in range(20):
        scene = draw_scene(rng("family", index), required=("heart",))
        assert scene.objects[0].shape == "heart"
