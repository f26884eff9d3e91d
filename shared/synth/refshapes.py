"""RefShapes on disk: drawn scenes in the official REFER layout.

    OUT/images/refshapes_000000000001.jpg
    OUT/<flavour>/instances.json        COCO annotations of every object (polygons, or RLE where needed)
    OUT/<flavour>/refs(unc).p           REFER pickle, protocol 2, plain containers only

Splits `train`, `val`, `testA` (targets from the round family) and `testB` (targets from the angular family). The same
arguments give the same bytes. Scenes of all flavours with one seed share their drawing but not their file.

Left out: categories finer than the shape, and RefCOCO's human noise (spelling, ambiguity).
"""

import hashlib
import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from shared.errors import DataError
from shared.runlog import ProgressBar
from shared.seeding import rng
from shared.synth.expressions import FLAVOURS, Expression, describe
from shared.synth.scenes import SCENE_SIZE_PX, Scene, draw_scene
from shared.synth.shapes import ANGULAR_SHAPES, ROUND_SHAPES, SHAPES, outline_xy_px

SPLIT_BY = "unc"

TARGET_SHAPES: dict[str, tuple[str, ...]] = {
    "train": SHAPES,
    "val": SHAPES,
    "testA": ROUND_SHAPES,
    "testB": ANGULAR_SHAPES,
}
"""Shapes a split's expressions may refer to."""

JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True)
class _Described:
    """A drawn image with the objects referred to: (object index, its expressions)."""

    scene: Scene
    targets: tuple[tuple[int, tuple[Expression, ...]], ...]


def write_refshapes(
    out: Path,
    flavour: str = "refshapes",
    num_train_images: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Draw and write one flavour.

    Args:
        out: Root folder; `images/` and `<flavour>/` are made below it.
        flavour: One of `FLAVOURS`.
        num_train_images: Images of the train split; val, testA and testB get a tenth each, at least 4.
        seed: Same seed, same bytes.
        progress: Show a progress bar on standard error.

    Returns:
        `{"root", "dataset", "split_by", "seed", "splits": {name: {"images", "refs", "sentences"}}, "sha256"}` where
        the hash covers the annotations and every image.

    Raises:
        DataError: Unknown flavour, fewer than one image, or `out` already holds this flavour.
    """
    if flavour not in FLAVOURS:
        raise DataError(f"flavour {flavour!r} is not one of {', '.join(FLAVOURS)}")
    if num_train_images < 1:
        raise DataError(f"images is {num_train_images}; at least 1 is needed")
    folder = Path(out) / flavour
    if (folder / "instances.json").exists():
        raise DataError(f"{folder} already holds a data set; remove it or choose another folder")
    image_folder = Path(out) / "images"
    folder.mkdir(parents=True, exist_ok=True)
    image_folder.mkdir(parents=True, exist_ok=True)
    tenth = max(4, num_train_images // 10)
    counts = {"train": num_train_images, "val": tenth, "testA": tenth, "testB": tenth}
    builder = _Annotations(flavour)
    digest = hashlib.sha256()
    with ProgressBar(sum(counts.values()), f"drawing {flavour}", "image", quiet=not progress) as bar:
        for split, count in counts.items():
            for described in _scenes(split, count, flavour, seed):
                file_name = builder.add(split, described)
                data = _jpeg(described.scene.image_HW3)
                digest.update(data)
                _write(image_folder / file_name, data)
                bar.update()
    refs, instances = builder.refs_bytes(), builder.instances_bytes()
    digest.update(refs)
    digest.update(instances)
    _write(folder / f"refs({SPLIT_BY}).p", refs)
    _write(folder / "instances.json", instances)  # last: its presence says the data set is whole
    return {
        "root": str(out),
        "dataset": flavour,
        "split_by": SPLIT_BY,
        "seed": seed,
        "splits": builder.counts,
        "sha256": digest.hexdigest(),
    }


def _scenes(split: str, count: int, flavour: str, seed: int) -> Iterator[_Described]:
    """`count` scenes in which at least one object of the split's family can be described."""
    family = TARGET_SHAPES[split]
    index = done = 0
    while done < count:
        draw = rng("refshapes", seed, split, index)
        index += 1
        scene = draw_scene(draw, required=family)
        words = rng("refshapes expressions", flavour, seed, split, index)
        order = words.permutation([i for i, item in enumerate(scene.objects) if item.shape in family])
        targets: list[tuple[int, tuple[Expression, ...]]] = []
        for target in order:
            expressions = describe(scene, int(target), flavour, words, num=int(words.integers(2, 4)))
            if len(expressions) >= 2:
                targets.append((int(target), tuple(expressions)))
            if len(targets) == 2:
                break
        if targets:
            done += 1
            yield _Described(scene=scene, targets=tuple(targets))


class _Annotations:
    """Collects COCO and REFER records with ids in order of drawing."""

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.refs: list[dict[str, Any]] = []
        self.num_sentences = 0
        self.counts = {split: {"images": 0, "refs": 0, "sentences": 0} for split in TARGET_SHAPES}

    def add(self, split: str, described: _Described) -> str:
        """Record one image and return its file name."""
        image_id = len(self.images) + 1
        file_name = f"{self.flavour}_{image_id:012d}.jpg"
        size = {"height": SCENE_SIZE_PX, "width": SCENE_SIZE_PX}
        self.images.append({"id": image_id, "file_name": file_name, **size})
        first_ann_id = len(self.annotations) + 1
        for index in range(len(described.scene.objects)):
            self.annotations.append(_annotation(described.scene, index, first_ann_id + index, image_id))
        for index, expressions in described.targets:
            self._add_ref(
                split,
                image_id,
                file_name,
                first_ann_id + index,
                described.scene.objects[index].shape,
                expressions,
            )
        self.counts[split]["images"] += 1
        return file_name

    def _add_ref(
        self,
        split: str,
        image_id: int,
        file_name: str,
        ann_id: int,
        shape: str,
        expressions: tuple[Expression, ...],
    ) -> None:
        sentences = []
        for expression in expressions:
            sentences.append(
                {
                    "sent_id": self.num_sentences,
                    "sent": expression.text,
                    "raw": expression.text,
                    "tokens": expression.text.split(),
                }
            )
            self.num_sentences += 1
        self.refs.append(
            {
                "ref_id": len(self.refs),
                "ann_id": ann_id,
                "image_id": image_id,
                "category_id": SHAPES.index(shape) + 1,
                "split": split,
                "file_name": file_name,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )
        self.counts[split]["refs"] += 1
        self.counts[split]["sentences"] += len(sentences)

    def refs_bytes(self) -> bytes:
        """The REFER pickle. Interning is undone by a JSON round trip, so equal data gives equal bytes."""
        return pickle.dumps(json.loads(json.dumps(self.refs)), protocol=2)

    def instances_bytes(self) -> bytes:
        """`instances.json`."""
        categories = [
            {"id": index + 1, "name": name, "supercategory": "shape"} for index, name in enumerate(SHAPES)
        ]
        info = {"description": f"RefShapes, flavour {self.flavour}", "version": "1"}
        document = {
            "info": info,
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }
        return json.dumps(document, separators=(",", ":")).encode()


def _annotation(scene: Scene, index: int, ann_id: int, image_id: int) -> dict[str, Any]:
    """COCO record of one object: a polygon inside the image that gives exactly the visible pixels, RLE otherwise."""
    item, mask_HW = scene.objects[index], scene.masks_KHW[index]
    rle = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    segmentation: Any = {
        "size": [int(side) for side in rle["size"]],
        "counts": rle["counts"].decode("ascii"),
    }
    outlines = outline_xy_px(item.shape, item.centre_xy_px, item.radius_px, item.angle_deg)
    inside = outlines[0].min() >= 0 and outlines[0].max() <= SCENE_SIZE_PX
    if len(outlines) == 1 and inside and not scene.occluded_K[index]:
        polygon = [round(float(value), 2) for value in outlines[0].ravel()]
        drawn = coco_mask.decode(coco_mask.frPyObjects([polygon], SCENE_SIZE_PX, SCENE_SIZE_PX)[0])
        if np.array_equal(drawn.astype(bool), mask_HW):
            segmentation = [polygon]
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": SHAPES.index(item.shape) + 1,
        "segmentation": segmentation,
        "area": int(mask_HW.sum()),
        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
        "iscrowd": 0,
    }


def _jpeg(image_HW3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Publish by rename, so that a killed run leaves no torn file under a final name."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
