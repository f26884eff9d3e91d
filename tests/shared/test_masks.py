"""Masks: pycocotools' results, independent run lengths, and the inputs pycocotools must never see."""

import json
import tempfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from shared.errors import DataError
from shared.images import read_mask
from shared.masks import (
    MaskFile,
    Targets,
    decode_segmentation,
    encode_rle,
    mask_box_xyxy_px,
    polygon_overhang_px,
    resize_mask_nearest,
    rle_area,
    rle_box_xyxy_px,
    segmentation_rle,
)
from tests.shared.refer_fixture import column_runs

# Sparse to dense, so that both short runs and runs beyond one and two 5-bit groups occur.
masks = st.tuples(
    st.integers(1, 70), st.integers(1, 70), st.floats(0, 1), st.integers(0, 2**32 - 1)
).map(lambda t: np.random.default_rng(t[3]).random(t[:2]) < t[2])  # fmt: skip
small_masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


@settings(deadline=None, max_examples=50)
@given(masks | small_masks)
def test_round_trip_of_both_encodings(mask_HW):
    height, width = mask_HW.shape
    rle = json.loads(json.dumps(encode_rle(mask_HW)))
    np.testing.assert_array_equal(decode_segmentation(rle, height, width), mask_HW)
    runs = {"size": [height, width], "counts": column_runs(mask_HW)}
    np.testing.assert_array_equal(decode_segmentation(runs, height, width), mask_HW)
    assert segmentation_rle(runs, height, width) == segmentation_rle(rle, height, width)
    in_bytes = {**rle, "counts": rle["counts"].encode()}
    np.testing.assert_array_equal(decode_segmentation(in_bytes, height, width), mask_HW)


@settings(deadline=None, max_examples=50)
@given(masks | small_masks)
def test_box_is_the_extent_of_the_true_pixels(mask_HW):
    rows, columns = np.nonzero(mask_HW)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if rows.size else [0, 0, 0, 0]
    box = mask_box_xyxy_px(mask_HW)
    assert box.dtype == np.float32
    np.testing.assert_array_equal(box, expected)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 61),
    st.integers(1, 61),
    st.lists(
        st.lists(st.tuples(st.floats(-5, 70), st.floats(-5, 70)), min_size=3, max_size=9).map(
            lambda corners: [value for corner in corners for value in corner]
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_polygons_as_pycocotools_has_them(height, width, polygons):
    mask_HW = decode_segmentation(polygons, height, width)
    assert mask_HW.shape == (height, width) and mask_HW.dtype == bool
    parts = coco_mask.frPyObjects(polygons, height, width)
    np.testing.assert_array_equal(mask_HW, coco_mask.decode(parts).any(axis=2))
    rle = segmentation_rle(polygons, height, width)
    assert rle_area(rle) == mask_HW.sum() == coco_mask.area(coco_mask.merge(parts))
    x, y, w, h = coco_mask.toBbox(coco_mask.merge(parts))
    np.testing.assert_array_equal(rle_box_xyxy_px(rle), [x, y, x + w, y + h])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3)])
@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full(shape, value):
    mask_HW = np.full(shape, value)
    rle = encode_rle(mask_HW)
    np.testing.assert_array_equal(decode_segmentation(rle, *shape), mask_HW)
    np.testing.assert_array_equal(mask_box_xyxy_px(mask_HW), [0, 0, shape[1], shape[0]] if value else [0] * 4)


def test_rectangle_and_overlap_by_hand():
    # Two rectangles on the pixel grid; the shared pixel is true, not counted twice.
    polygons = [[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 3, 1, 3, 3, 1, 3]]
    expected = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    np.testing.assert_array_equal(decode_segmentation(polygons, 4, 4), expected)


def test_list_of_rles_is_their_union():
    a, b = np.eye(5, dtype=bool), np.fliplr(np.eye(5, dtype=bool))
    np.testing.assert_array_equal(decode_segmentation([encode_rle(a), encode_rle(b)], 5, 5), a | b)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "neither polygons nor RLE"),
        ([], "neither polygons nor RLE"),
        ("abc", "neither polygons nor RLE"),
        ([1, 2, 3], "not a list of numbers"),
        ([[1, 1, 3, 3]], "polygon of 4 numbers"),
        ([[0, 0, 4, 0, 4]], "polygon of 5 numbers"),
        ([[0, 0, 4, 0, 4, 4, 0]], "polygon of 7 numbers"),
        ([[0, 0, 4, 0, 4, float("nan")]], "not a finite number"),
        ([[0, 0, 4, 0, 4, float("inf")]], "not a finite number"),
        ([[0, 0, 4, 0, 4, 10**400]], "not a finite number"),
        ([[0, 0, 4, 0, 4, "4"]], "not a finite number"),
        ([[0, 0, 4, 0, 4, 1e9]], "further than"),
        ([[0, 0, 4, 0, 4, -1e9]], "further than"),
        ([[0, 0, 4, 0, 4, 4], {"size": [4, 4], "counts": [16]}], "not a list of numbers"),
        ({"size": [4, 5], "counts": [20]}, "RLE of size"),
        ({"counts": [16]}, "RLE of size None"),
        ({"size": [4, 4]}, "counts None"),
        ({"size": [4, 4], "counts": [3, 2]}, "cover 5 pixels"),
        ({"size": [4, 4], "counts": [3, 20]}, "cover 23 pixels"),
        ({"size": [4, 4], "counts": [-3, 19]}, "run -3"),
        ({"size": [4, 4], "counts": [3, "a"]}, "run 'a'"),
        ({"size": [4, 4], "counts": [8.0, 8]}, "run 8.0"),
        ({"size": [4, 4], "counts": "52"}, "cover 7 pixels"),
        ({"size": [4, 4], "counts": "not an rle"}, "which no run is made of"),
        ({"size": [4, 4], "counts": "5P"}, "ends within a run"),
        ({"size": [4, 4], "counts": "日"}, "RLE"),
    ],
)
def test_malformed_segmentations_are_refused(segmentation, message):
    with pytest.raises(DataError, match=message) as caught:
        decode_segmentation(segmentation, 4, 4)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=12))
def test_hostile_rle_text_is_refused_or_exact(counts):
    """Whatever is accepted covers the image to the pixel, so pycocotools never leaves its buffer."""
    try:
        mask_HW = decode_segmentation({"size": [5, 7], "counts": counts}, 5, 7)
    except DataError:
        return
    np.testing.assert_array_equal(decode_segmentation(encode_rle(mask_HW), 5, 7), mask_HW)


@settings(deadline=None, max_examples=50)
@given(small_masks, st.integers(1, 23), st.integers(1, 23))
def test_resize_takes_the_pixel_under_each_centre(mask_HW, height, width):
    resized = resize_mask_nearest(mask_HW, (height, width))
    assert resized.shape == (height, width) and resized.dtype == bool
    rows = _source_index(mask_HW.shape[0], height)
    columns = _source_index(mask_HW.shape[1], width)
    np.testing.assert_array_equal(resized, mask_HW[np.ix_(rows, columns)])


def _source_index(size_in, size_out):
    """floor of the centre in source pixels; on a pixel border Pillow's rounding decides, so those cases are skipped."""
    centres = (np.arange(size_out) + 0.5) * size_in / size_out
    assume(np.array_equal(np.floor(centres + 1e-6), np.floor(centres - 1e-6)))
    return np.floor(centres).astype(int)


def test_overhang():
    assert polygon_overhang_px([[0, 0, 10, 0, 10, 8]], 8, 10) == 0
    assert polygon_overhang_px([[0, 0, 10, 0, 10, 8], [-2.5, 0, 10, 0, 10, 9]], 8, 10) == 2.5
    assert polygon_overhang_px([[0, 0, 10, 0, 10, 12]], 8, 10) == 4
    assert polygon_overhang_px({"size": [8, 10], "counts": [80]}, 8, 10) == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=4), st.integers(1, 40), st.integers(1, 40))
def test_targets_are_the_union_of_their_parts(seeds, height, width):
    parts = [np.random.default_rng(seed).random((height, width)) < 0.3 for seed in seeds]
    forms = [
        encode_rle(m) if i % 2 else {"size": [height, width], "counts": column_runs(m)}
        for i, m in enumerate(parts)
    ]
    expected = np.any(parts, axis=0) if parts else np.zeros((height, width), dtype=bool)
    united = decode_segmentation(Targets(parts=tuple(forms)), height, width)
    assert united.dtype == bool
    np.testing.assert_array_equal(united, expected)


@settings(deadline=None, max_examples=25)
@given(masks | small_masks, st.sampled_from(["1", "L", "I;16"]))
def test_round_trip_of_mask_images(mask_HW, mode):
    height, width = mask_HW.shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        image = {
            "1": lambda: Image.fromarray(mask_HW),
            "L": lambda: Image.fromarray(mask_HW.astype(np.uint8) * 255),
            "I;16": lambda: Image.fromarray(mask_HW.astype(np.uint16) * 65_535),
        }[mode]()
        image.save(path)
        np.testing.assert_array_equal(read_mask(path), mask_HW)
        rle = segmentation_rle(MaskFile(path=path), height, width)
        assert {**rle, "counts": rle["counts"].decode()} == encode_rle(mask_HW)
        with pytest.raises(DataError, match="mask.png of height"):
            segmentation_rle(MaskFile(path=path), height + 1, width)


def test_a_mask_drawn_over_a_photo_that_is_not_turned_yet_is_told_so(tmp_path):
    """Cameras leave a photo lying and note its orientation; tools that do not read the note draw over it as it lies."""
    Image.new("L", (6, 4), 255).save(tmp_path / "lying.png")
    Image.new("L", (6, 5), 255).save(tmp_path / "other.png")
    lying = {"size": [4, 6], "counts": [24]}
    for mask in (MaskFile(path=tmp_path / "lying.png"), lying):
        with pytest.raises(
            DataError, match="height 6 and width 4; its sides are swapped: .* EXIF orientation"
        ):
            decode_segmentation(mask, 6, 4)
    with pytest.raises(DataError, match="height 6 and width 4$"):
        decode_segmentation(MaskFile(path=tmp_path / "other.png"), 6, 4)


def test_a_mask_of_the_other_orientation_is_refused(tmp_path):
    mask_HW = np.eye(3, 5, dtype=bool)
    Image.fromarray(mask_HW).save(tmp_path / "mask.png")
    for segmentation in (encode_rle(mask_HW), MaskFile(path=tmp_path / "mask.png")):
        assert decode_segmentation(segmentation, 3, 5).sum() == 3
        with pytest.raises(DataError, match="for an image of height 5 and width 3; its sides are swapped"):
            decode_segmentation(segmentation, 5, 3)
