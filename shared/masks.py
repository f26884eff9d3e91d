"""COCO segmentations and masks: exactly what pycocotools makes of them, behind checks that pycocotools lacks.

A segmentation is a list of polygons `[x0, y0, x1, y1, ...]` in pixels of the original image, a run-length encoding
(RLE) `{"size": [height, width], "counts": ...}` whose counts are a list (crowds) or a compressed string, or a list of
such encodings; several parts are united. Runs go down the columns. Masks are boolean arrays `mask_HW`. Two forms are
ours: `Targets`, the union of several objects or of none, and `MaskFile`, a mask drawn as an image.

The checks matter: unchecked, pycocotools returns uninitialised memory for runs that end early and exhausts the
machine's memory on a coordinate that is not finite.

Legend: H height, W width.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from shared.errors import DataError, short
from shared.images import read_mask
from shared.json_files import is_finite_number

MAX_COORDINATE_PX = 100_000
"""Polygon corners further from the origin are refused: rasterising costs memory in proportion to edge length."""

UPRIGHT = "a photo is turned upright by its EXIF orientation, and so must its mask be"
"""What is said of a mask that fits its image if height and width are swapped."""

MIN_POLYGON_NUMBERS = 6
"""Three corners; pycocotools would take four numbers for a box."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """The union of several segmentations; of none at all it is the empty mask."""

    parts: tuple[Any, ...]
    """Segmentations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskFile:
    """A mask drawn as an image (`shared.images.read_mask`)."""

    path: Path
    """The file."""


def segmentation_hash(segmentation: Any) -> str:
    """Of what was drawn, 32 hex digits: equal for equal numbers, or equal bytes of a mask's file."""
    if isinstance(segmentation, MaskFile):
        try:
            data = segmentation.path.read_bytes()
        except OSError as error:
            raise DataError(f"{segmentation.path}: cannot be read: {error.strerror or error}") from error
    elif isinstance(segmentation, Targets):
        data = " ".join(map(segmentation_hash, segmentation.parts)).encode()
    else:
        text = json.dumps(segmentation, sort_keys=True, default=lambda value: bytes(value).decode("latin-1"))
        data = text.encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Rasterise a COCO segmentation.

    Args:
        segmentation: Any form of the module's docstring.
        height: Height of the image, pixels.
        width: Width of the image, pixels.

    Returns:
        `bool [H, W]`; where several polygons overlap the mask is true.

    Raises:
        DataError: A malformed segmentation or one of another image size.
    """
    return coco_mask.decode(segmentation_rle(segmentation, height, width)).astype(bool)


def segmentation_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation as one compressed RLE of pycocotools (`counts` are bytes); arguments as above."""
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, height, width)
    if isinstance(segmentation, Targets):
        parts = [segmentation_rle(part, height, width) for part in segmentation.parts]
        return coco_mask.merge(parts or [coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))])
    if isinstance(segmentation, MaskFile):
        mask_HW = read_mask(segmentation.path)
        if mask_HW.shape != (height, width):
            found = f"height {mask_HW.shape[0]} and width {mask_HW.shape[1]}"
            raise DataError(
                f"mask {segmentation.path} of {found} for an image of height {height} and width {width}"
                + swapped_hint(mask_HW.shape, height, width)
            )
        return coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"segmentation {short(segmentation)} is neither polygons nor RLE")
    if all(isinstance(part, dict) for part in segmentation):
        return coco_mask.merge([_checked_rle(part, height, width) for part in segmentation])
    for polygon in segmentation:
        _check_polygon(polygon)
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def encode_rle(mask_HW: np.ndarray) -> dict[str, Any]:
    """A boolean mask as a compressed RLE that JSON can hold: `{"size": [H, W], "counts": str}`."""
    assert mask_HW.dtype == bool and mask_HW.ndim == 2, (
        f"expected bool [H, W], got {mask_HW.dtype} {mask_HW.shape}"
    )
    rle = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def rle_area(rle: dict[str, Any]) -> int:
    """Pixels inside a compressed RLE."""
    return int(coco_mask.area(rle))


def rle_box_xyxy_px(rle: dict[str, Any]) -> np.ndarray:
    """Tight box of a compressed RLE.

    Returns:
        `float32 [4]`: x0, y0, x1, y1 in pixels, x1 and y1 exclusive (the box of one pixel has side 1); zeros for an
        empty mask.
    """
    x, y, w, h = coco_mask.toBbox(rle)
    return np.array([x, y, x + w, y + h], dtype=np.float32)


def mask_box_xyxy_px(mask_HW: np.ndarray) -> np.ndarray:
    """Tight box of a boolean mask; result as of `rle_box_xyxy_px`."""
    return rle_box_xyxy_px(encode_rle(mask_HW))


def resize_mask_nearest(mask_HW: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize a boolean mask to `size_hw` by nearest neighbour with pixel centres (Pillow's `NEAREST`)."""
    assert mask_HW.dtype == bool and mask_HW.ndim == 2, (
        f"expected bool [H, W], got {mask_HW.dtype} {mask_HW.shape}"
    )
    height, width = size_hw
    image = Image.fromarray(mask_HW.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)).astype(bool)


def swapped_hint(size_hw: Any, height: int, width: int) -> str:
    """The end of a message about a mask of another size than its image; "" where its sides are not just swapped."""
    swapped = isinstance(size_hw, list | tuple) and list(size_hw) == [width, height]
    return f"; its sides are swapped: {UPRIGHT}" if swapped else ""


def polygon_overhang_px(segmentation: Any, height: int, width: int) -> float:
    """How far the corners of polygons lie outside the image, in pixels; 0 for RLE and for polygons inside."""
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        return 0.0
    overhang = 0.0
    for polygon in segmentation:
        xs, ys = polygon[0::2], polygon[1::2]
        overhang = max(overhang, -min(xs), max(xs) - width, -min(ys), max(ys) - height)
    return overhang


def _check_polygon(polygon: Any) -> None:
    if not isinstance(polygon, list):
        raise DataError(f"polygon {short(polygon)} is not a list of numbers")
    if len(polygon) < MIN_POLYGON_NUMBERS or len(polygon) % 2:
        raise DataError(
            f"polygon of {len(polygon)} numbers; expected an even count of at least {MIN_POLYGON_NUMBERS}"
        )
    for value in polygon:
        if not is_finite_number(value):
            raise DataError(f"polygon coordinate {short(value)} is not a finite number")
        if abs(value) > MAX_COORDINATE_PX:
            raise DataError(
                f"polygon coordinate {short(value)} is further than {MAX_COORDINATE_PX} px from the origin"
            )


def _checked_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise DataError(
            f"RLE of size {short(size)} for an image of height {height} and width {width}"
            + swapped_hint(size, height, width)
        )
    if isinstance(counts, str | bytes):
        data = counts.encode("ascii", errors="replace") if isinstance(counts, str) else counts
        runs = _compressed_runs(data)
    elif isinstance(counts, list):
        runs = counts
    else:
        raise DataError(f"RLE counts {short(counts)} are neither a list nor text")
    for run in runs:
        if isinstance(run, bool) or not isinstance(run, int) or run < 0:
            raise DataError(f"RLE run {short(run)} is not a whole number of pixels")
    if sum(runs) != height * width:
        raise DataError(
            f"RLE runs cover {sum(runs)} pixels of an image of {height} x {width} = {height * width}"
        )
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": data}


def _compressed_runs(data: bytes) -> list[int]:
    """Runs of a compressed RLE: 5-bit groups, low first, bit 6 means more; from the fourth on, deltas by two."""
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        group = byte - 48
        if not 0 <= group < 64:
            raise DataError(f"RLE text holds {chr(byte)!r}, which no run is made of")
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError("RLE text ends within a run")
    return runs
