"""A tiny data set in the REFER layout, with every form of segmentation and ids that are not in order.

| image | size_hw | split | refs (ref_id: form of the segmentation)            |
|-------|---------|-------|----------------------------------------------------|
| 101   | 12 x 17 | train | 7: polygon; 2: two polygons                        |
| 102   | 9 x 9   | train | 5: uncompressed RLE (crowd)                        |
| 103   | 16 x 10 | train | 1: compressed RLE; 9: polygon                      |
| 104   | 11 x 13 | val   | 3: compressed RLE; 4: two polygons                 |
| 105   | 12 x 12 | testA | 6: polygon                                         |
| 106   | 10 x 20 | testB | 8: uncompressed RLE (crowd)                        |

Refs stand in the file in the order of `_REFS`; sorted by ref_id the train images appear as 103, 101, 102.
"""

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

_SIZES_HW = {101: (12, 17), 102: (9, 9), 103: (16, 10), 104: (11, 13), 105: (12, 12), 106: (10, 20)}
_SPLITS = {101: "train", 102: "train", 103: "train", 104: "val", 105: "testA", 106: "testB"}
_REFS = [
    (7, 101, "polygon"),
    (2, 101, "polygons"),
    (5, 102, "counts list"),
    (1, 103, "counts text"),
    (9, 103, "polygon"),
    (8, 106, "counts list"),
    (3, 104, "counts text"),
    (4, 104, "polygons"),
    (6, 105, "polygon"),
]
REF_ORDER = sorted(ref_id for ref_id, _, _ in _REFS)
TRAIN_IMAGE_IDS = [103, 101, 102]


@dataclass(frozen=True, kw_only=True)
class ReferFixture:
    """What was written."""

    root: Path
    dataset: str
    split_by: str
    refs: list[dict[str, Any]]
    instances: dict[str, Any]
    masks: dict[int, np.ndarray]
    """Expected `bool [H, W]` by annotation id (1000 + ref_id), before any edit."""

    @property
    def args(self) -> tuple[Path, str, str]:
        """Arguments of `load_refer` and `check_refer`."""
        return self.root, self.dataset, self.split_by


def write_refer_fixture(
    root: Path,
    *,
    dataset: str = "tiny",
    split_by: str = "unc",
    image_folder: str = "images",
    python2: bool = False,
    protocol: int = 2,
    edit: Callable[[list[dict[str, Any]], dict[str, Any]], None] | None = None,
) -> ReferFixture:
    """Write the data set.

    Args:
        root: Folder to write below.
        dataset: Name of the annotation folder.
        split_by: Name within `refs(...).p`.
        image_folder: Where the images go, below `root`.
        python2: Write the refs as Python 2 did, with byte strings.
        protocol: Pickle protocol otherwise.
        edit: Called with the refs and the COCO object before they are written, to break them.
    """
    rng = np.random.default_rng(0)
    (root / image_folder).mkdir(parents=True, exist_ok=True)
    (root / dataset).mkdir(parents=True, exist_ok=True)
    images = []
    for image_id, (height, width) in _SIZES_HW.items():
        file_name = f"tiny_{image_id:06d}.{'png' if image_id == 102 else 'jpg'}"
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / image_folder / file_name)
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
    annotations, refs, masks = [], [], {}
    for ref_id, image_id, form in _REFS:
        ann_id = 1000 + ref_id
        segmentation, masks[ann_id] = _segmentation(form, *_SIZES_HW[image_id], rng)
        annotations.append(
            {"id": ann_id, "image_id": image_id, "category_id": 1, "segmentation": segmentation,
             "iscrowd": int(form == "counts list")}
        )  # fmt: skip
        refs.append(_ref(ref_id, image_id, ann_id))
    annotations.append({"id": 2000, "image_id": 101, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]})
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    if edit is not None:
        edit(refs, instances)
    data = python2_pickle(refs) if python2 else pickle.dumps(refs, protocol=protocol)
    (root / dataset / f"refs({split_by}).p").write_bytes(data)
    (root / dataset / "instances.json").write_text(json.dumps(instances))
    return ReferFixture(
        root=root, dataset=dataset, split_by=split_by, refs=refs, instances=instances, masks=masks
    )


def _ref(ref_id: int, image_id: int, ann_id: int) -> dict[str, Any]:
    """Two sentences: one that all refs share and one of its own, whose normalised text is blank for ref 5."""
    own = f"thing number {ref_id}"
    sentences = [
        {"sent_id": 10 * ref_id, "sent": "the thing", "raw": "The thing!", "tokens": ["the", "thing"]},
        {"sent_id": 10 * ref_id + 1, "sent": " " if ref_id == 5 else own, "raw": own, "tokens": own.split()},
    ]
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "split": _SPLITS[image_id],
        "file_name": f"tiny_{image_id}_{ref_id}.jpg",
        "sent_ids": [10 * ref_id, 10 * ref_id + 1],
        "sentences": sentences,
    }


def _segmentation(form: str, height: int, width: int, rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    if form in ("polygon", "polygons"):
        # Rectangles on the pixel grid: pycocotools fills exactly the pixels between the lines.
        boxes = [(1, 2, 5, 7)] if form == "polygon" else [(0, 0, 4, 3), (2, 1, 7, 6)]
        mask = np.zeros((height, width), dtype=bool)
        for x0, y0, x1, y1 in boxes:
            mask[y0:y1, x0:x1] = True
        return [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes], mask
    mask = rng.random((height, width)) < 0.4
    if form == "counts text":
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": [height, width], "counts": rle["counts"].decode()}, mask
    return {"size": [height, width], "counts": column_runs(mask)}, mask


def column_runs(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, the first of them background: an uncompressed RLE, computed independently."""
    runs, value, length = [], False, 0
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            runs.append(length)
            value, length = bool(pixel), 0
        length += 1
    return [*runs, length]


def python2_pickle(value: Any, encoding: str = "utf-8") -> bytes:
    """Protocol 2 as Python 2 wrote it: every text an 8-bit string in `encoding`."""
    return b"\x80\x02" + _python2(value, encoding) + b"."


def _python2(value: Any, encoding: str) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_python2(part, encoding) for pair in value.items() for part in pair)
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_python2(part, encoding) for part in value) + b"e"
    if isinstance(value, str):
        data = value.encode(encoding)
        return b"T" + struct.pack("<i", len(data)) + data
    assert isinstance(value, int)
    return b"J" + struct.pack("<i", value)


def set_field(*path_and_value):
    """An edit that assigns below (refs, instances): `set_field(0, 3, "ann_id", 9)` is `refs[3]["ann_id"] = 9`."""
    *path, last, value = path_and_value

    def edit(*roots):
        target = roots
        for key in path:
            target = target[key]
        target[last] = value

    return edit


def drop_field(*path):
    """An edit that deletes below (refs, instances)."""

    def edit(*roots):
        target = roots
        for key in path[:-1]:
            target = target[key]
        del target[path[-1]]

    return edit


BROKEN: dict[str, tuple[Callable[..., None], str]] = {
    "unknown image": (set_field(0, 2, "image_id", 999), r"refs\[2\] \(ref_id 5\): image_id 999 is not among"),
    "unknown annotation": (
        set_field(0, 2, "ann_id", 999),
        r"refs\[2\] \(ref_id 5\): ann_id 999 is not among",
    ),
    "image of annotation": (
        set_field(1, "annotations", 2, "image_id", 104),
        r"refs\[2\] .* 1005 is of image 104",
    ),
    "duplicate ref": (set_field(0, 2, "ref_id", 7), r"refs\[2\] \(ref_id 7\): ref_id 7 stands at refs\[0\]"),
    "duplicate sentence": (
        set_field(0, 2, "sentences", 1, "sent_id", 70),
        r"refs\[2\] \(ref_id 5\) sentences\[1\]: sent_id 70 stands at refs\[0\] \(ref_id 7\) sentences\[0\] already",
    ),
    "no text": (
        set_field(0, 2, "sentences", 0, {"sent_id": 50, "sent": " ", "raw": "\n"}),
        r"sentences\[0\]: sent_id 50 has the expression ''",
    ),
    "no text key": (
        set_field(0, 2, "sentences", 0, {"sent_id": 50}),
        r"sentences\[0\]: has neither 'sent' nor 'raw'",
    ),
    "text of a number": (
        set_field(0, 2, "sentences", 0, "sent", 5),
        r"sentences\[0\]: 'sent' is 5, not of type str",
    ),
    "no split": (drop_field(0, 2, "split"), r"refs\[2\]: has no 'split'"),
    "no ann_id": (drop_field(0, 2, "ann_id"), r"refs\[2\]: has no 'ann_id'"),
    "ref no object": (set_field(0, 2, [1]), r"refs\[2\]: expected an object, found list"),
    "sentences no list": (
        set_field(0, 2, "sentences", "a b"),
        r"refs\[2\]: 'sentences' is 'a b', not of type list",
    ),
    "id of text": (set_field(0, 2, "ref_id", "5"), r"refs\[2\]: 'ref_id' is '5', not of type int"),
    "no height": (drop_field(1, "images", 3, "height"), r"instances.json: images\[3\]: has no 'height'"),
    "no width": (
        set_field(1, "images", 3, "width", 0),
        r"images\[3\] \(id 104\): height 11 and width 0 are not within",
    ),
    "no segmentation": (
        drop_field(1, "annotations", 3, "segmentation"),
        r"annotations\[3\]: has no 'segmentation'",
    ),
    "image id twice": (
        set_field(1, "images", 3, "id", 101),
        r"images\[3\] \(id 101\): image id 101 stands for another",
    ),
    "annotation id twice": (
        set_field(1, "annotations", 3, "id", 1007),
        r"annotations\[3\] \(id 1007\): annotation id 1007 stands for another",
    ),
    "no images": (drop_field(1, "images"), "instances.json: has no list 'images'"),
    "no annotations": (set_field(1, "annotations", {}), "instances.json: has no list 'annotations'"),
    "no refs": (lambda refs, instances: refs.clear(), r"refs\(unc\).p: holds no expression"),
}
"""Edits that the loader must refuse, each with a pattern of its message."""
