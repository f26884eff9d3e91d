"""An example of a user's own data: a commented JSONL file and drawn images, most of them without a mask.

OUT/photos.jsonl
OUT/images/0001.jpg
OUT/masks/0001.png
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.masks import encode_rle, mask_box_xyxy_px
from shared.seeding import rng
from shared.synth.expressions import describe
from shared.synth.scenes import draw_scene
from shared.synth.shapes import SHAPES, outline_xy_px

FILE_NAME = "photos.jsonl"

COMMENT = """\
# One line, one pair of image and expression. Lines that start with # and blank lines are skipped.
#
# image       file name relative to this file, in its folder or below it: no absolute path and no ..; links are fine
# expression  what is meant in it
# mask        leave it out (or null) where nobody has drawn one: the pair is then unlabelled. Otherwise one of
#             "masks/a.png"                      an image of one channel, black outside the object
#             ["masks/a.png", "masks/b.png"]     the object in several such images
#             [[x0, y0, x1, y1, x2, y2, ...]]    polygons, pixels of the upright image, origin at its top left corner
#             {"size": [h, w], "counts": ...}    COCO run lengths, compressed or not
#             []                                 nothing in the image is meant
# box         optional weak label [x, y, width, height], pixels
# point       optional weak label [x, y], pixels
# split       train (if left out), val, or any other name; pairs of a split that is scored need masks
#
# The data set is named after this file. Lines may be given masks later: priors stay valid. Add new
# lines at the end: an id is a line's number, and a training that has begun does not go on with other ids.
"""
"""Head of the file."""


def write_example(out: Path, images: int = 8, seed: int = 0) -> dict[str, Any]:
    """Write the example.

    Args:
        out: Folder to make; must not hold the file yet.
        images: Training images; a tenth of them, at least 3, carry a mask. As many again are drawn for `val`.
        seed: Same seed, same pixels.

    Returns:
        `path` of the file, and the number of pairs by split and with a mask.

    Raises:
        DataError: Too few images, or the file is there.
    """
    if images < 4:
        raise DataError(f"images is {images}; at least 4 are needed to show every form")
    path = out / FILE_NAME
    if path.exists():
        raise DataError(f"{path} is there already; choose another folder")
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    num_masks = max(3, images // 10)
    rows = [_row(out, number, seed, "train", number <= num_masks) for number in range(1, images + 1)]
    rows += [_row(out, images + number, seed, "val", True) for number in range(1, num_masks + 1)]
    path.write_text(COMMENT + "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(path), "train": images, "train_masks": num_masks, "val": num_masks}


def _row(out: Path, number: int, seed: int, split: str, drawn: bool) -> dict[str, Any]:
    """Draw one image, and its mask in a form that changes from line to line; the others get a box or point at times."""
    draw = rng("example", seed, number)
    while True:  # until something in the scene can be told from the rest
        scene = draw_scene(draw, required=SHAPES)
        target = int(draw.integers(len(scene.objects)))
        expressions = describe(scene, target, "refshapes", draw, num=1)
        if expressions:
            break
    name = f"{number:04d}"
    Image.fromarray(scene.image_HW3).save(out / "images" / f"{name}.jpg", quality=92)
    row: dict[str, Any] = {"image": f"images/{name}.jpg", "expression": expressions[0].text}
    mask_HW, item = scene.masks_KHW[target], scene.objects[target]
    x0, y0, x1, y1 = mask_box_xyxy_px(mask_HW).tolist()
    if drawn:
        row["mask"] = _mask(out, name, number % 3, mask_HW, item, bool(scene.occluded_K[target]))
    elif number % 3 == 0:
        row["box"] = [x0, y0, x1 - x0, y1 - y0]
    elif number % 3 == 1:
        row["point"] = [(x0 + x1) / 2, (y0 + y1) / 2]
    return row if split == "train" else {**row, "split": split}


def _mask(out: Path, name: str, form: int, mask_HW: np.ndarray, item: Any, occluded: bool) -> Any:
    """A mask image, an RLE, or polygons where nothing covers the object and it has no hole."""
    outlines = outline_xy_px(item.shape, item.centre_xy_px, item.radius_px, item.angle_deg)
    if form == 1 or (form == 2 and (occluded or len(outlines) > 1)):
        Image.fromarray(mask_HW.astype(np.uint8) * 255).save(out / "masks" / f"{name}.png")
        return f"masks/{name}.png"
    if form == 2:
        side = mask_HW.shape[0]
        return [[round(min(max(float(value), 0.0), float(side)), 2) for value in outlines[0].ravel()]]
    return encode_rle(mask_HW)
