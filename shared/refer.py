"""Referring-expression data in the REFER layout: samples, images and masks.

    ROOT/images/[train2014/]...  or  ROOT/images/mscoco/images/train2014/...
    ROOT/<dataset>/refs(<split_by>).p
    ROOT/<dataset>/instances.json

Loading reads the two annotation files and no image. Every sample's image and annotation are known to exist in the
annotations once `load_refer` has returned; what is wrong with an image file or a segmentation shows when it is read.
Masks leave only through `.mask` and `.box_xyxy_px`, so a reader made by `without_masks` cannot leak one.

A difference from the REFER API: overlapping polygons of one object are united, where it adds them up (and users of
it that compare with 1 lose the overlap).
"""

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from shared.errors import DataError
from shared.masks import decode_segmentation, rle_box_xyxy_px, segmentation_rle
from shared.refer_layout import Layout, read_layout, unsafe_file_name
from shared.types import Sample

IMAGE_FOLDERS = ("images", "images/train2014", "images/mscoco/images/train2014")
"""Where images are looked for below the root, in this order."""

SPLIT_ORDER = ("train", "val", "testA", "testB", "test")
"""Order in which splits are listed; any others follow by name."""


class MaskAccessError(RuntimeError):
    """A mask was asked of a reader that must not see it: a leak, not a fault of the data."""


@runtime_checkable
class ReferringDataset(Protocol):
    """What both stages need of a data set, whatever files it comes from."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits present."""

    def samples(self, split: str | None = None) -> list[Sample]:
        """Samples of one split, or all, in the data set's own order."""

    def image(self, sample: Sample) -> Image.Image:
        """The original image as RGB, `sample.width` x `sample.height`."""

    def mask(self, sample: Sample) -> np.ndarray:
        """`bool [H, W]` at the original size."""

    def box_xyxy_px(self, sample: Sample) -> np.ndarray:
        """Tight box of the mask, `float32 [4]`, pixels of the original image."""

    def train_image_ids(self) -> list[int]:
        """Unique image ids of the train split in order of first appearance."""

    def without_masks(self, keep_image_ids: Collection[int]) -> "ReferringDataset":
        """The same data set, with the masks of `keep_image_ids` alone."""

    def fingerprint(self) -> str:
        """Hash of the annotations; equal for equal annotations."""


class ReferDataset:
    """Reader of one data set in the REFER layout; made by `load_refer`."""

    def __init__(self, layout: Layout) -> None:
        self.root = layout.root
        self.dataset = layout.dataset
        self.split_by = layout.split_by
        self._instances_path = layout.instances_path
        self._fingerprint = layout.fingerprint
        self._samples = _samples(layout)
        train_refs = (ref for ref in layout.refs if ref.split == "train")
        self._train_image_ids = list(dict.fromkeys(ref.image_id for ref in train_refs))
        needed = {sample.ann_id for sample in self._samples}
        self._segmentations: dict[int, Any] = {ann: layout.annotations[ann].segmentation for ann in needed}
        self._masked_image_ids: frozenset[int] | None = None  # None: masks of all images

    def __repr__(self) -> str:
        """Name and size."""
        return f"ReferDataset({self.dataset} ({self.split_by}) in {self.root}, {len(self._samples)} samples)"

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits present, in the order train, val, testA, testB, test, others."""
        return ordered_splits({sample.split for sample in self._samples})

    def samples(self, split: str | None = None) -> list[Sample]:
        """Samples of one split, or all: refs sorted by ref_id, then sentences in file order.

        Raises:
            DataError: The data set has no such split.
        """
        if split is None:
            return list(self._samples)
        chosen = [sample for sample in self._samples if sample.split == split]
        if not chosen:
            known = ", ".join(self.splits)
            raise DataError(f"{self.dataset} ({self.split_by}) has no split {split!r} (it has {known})")
        return chosen

    def train_image_ids(self) -> list[int]:
        """Unique image ids of the train split in order of first appearance with refs sorted by ref_id."""
        return list(self._train_image_ids)

    def fingerprint(self) -> str:
        """32 hex digits of a hash over the bytes of both annotation files (images are not covered)."""
        return self._fingerprint

    def image_path(self, image: Sample | str) -> Path:
        """The file of an image, given its sample or file name.

        Raises:
            DataError: It is in none of `IMAGE_FOLDERS`, or its name leads out of them.
        """
        return find_image(self.root, image if isinstance(image, str) else image.file_name)

    def image(self, sample: Sample) -> Image.Image:
        """The original image as RGB, turned upright where its EXIF data say so.

        Raises:
            DataError: The file is missing, cannot be decoded to the end, or is not of the annotated size.
        """
        path = self.image_path(sample)
        image = read_image(path)
        if image.size != (sample.width, sample.height):
            raise DataError(
                f"{path}: image {sample.image_id}: width x height {image.width} x {image.height}, "
                f"but {self._instances_path} says {sample.width} x {sample.height}"
            )
        return image

    def mask(self, sample: Sample) -> np.ndarray:
        """The object's mask, `bool [H, W]` at the original size; all False if its polygons cover no pixel.

        Raises:
            DataError: A malformed segmentation.
            MaskAccessError: This reader must not see the image's masks.
        """
        segmentation = self._segmentation(sample)
        try:
            return decode_segmentation(segmentation, sample.height, sample.width)
        except DataError as error:
            raise self._segmentation_error(sample, error) from error

    def box_xyxy_px(self, sample: Sample) -> np.ndarray:
        """Tight box of the mask: `float32 [4]` x0, y0, x1, y1 in pixels, ends exclusive; zeros for an empty mask.

        Raises as `mask` does.
        """
        segmentation = self._segmentation(sample)
        try:
            return rle_box_xyxy_px(segmentation_rle(segmentation, sample.height, sample.width))
        except DataError as error:
            raise self._segmentation_error(sample, error) from error

    def without_masks(self, keep_image_ids: Collection[int]) -> "ReferDataset":
        """A reader that holds the segmentations of `keep_image_ids` alone.

        The others are dropped, not hidden: asking for one raises `MaskAccessError`.
        """
        keep = frozenset(keep_image_ids)
        if self._masked_image_ids is not None:
            keep &= self._masked_image_ids
        kept_anns = {sample.ann_id for sample in self._samples if sample.image_id in keep}
        reader = copy.copy(self)
        reader._segmentations = {ann: self._segmentations[ann] for ann in kept_anns}
        reader._masked_image_ids = keep
        return reader

    def _segmentation(self, sample: Sample) -> Any:
        if self._masked_image_ids is not None and sample.image_id not in self._masked_image_ids:
            raise MaskAccessError(
                f"mask of {sample.sample_id} (image {sample.image_id}) is not for this reader"
            )
        return self._segmentations[sample.ann_id]

    def _segmentation_error(self, sample: Sample, error: DataError) -> DataError:
        return DataError(f"{self._instances_path}: annotation {sample.ann_id}: {error}")


def load_refer(root: str | Path, dataset: str, split_by: str) -> ReferDataset:
    """Load a data set in the REFER layout (module docstring).

    Args:
        root: Folder that holds `images/` and `<dataset>/`.
        dataset: For example `refcoco`, `refcoco+`, `refcocog`.
        split_by: For example `unc`, `umd`, `google`.

    Raises:
        DataError: A file is missing or unreadable, or a row needs what is not there; one line naming the first such
            file, row and value (`shared.refer_check.check_refer` lists them all).
    """
    layout = read_layout(root, dataset, split_by)
    blocking = [problem for problem in layout.problems if problem.blocks]
    if blocking:
        more = f" (and {len(blocking) - 1} more problems)" if len(blocking) > 1 else ""
        raise DataError(blocking[0].line + more)
    if not any(ref.sentences for ref in layout.refs):
        raise DataError(f"{layout.refs_path}: holds no expression")
    return ReferDataset(layout)


def find_image(root: Path, file_name: str) -> Path:
    """The file of an image below `root`; raises DataError as `ReferDataset.image_path`."""
    if unsafe_file_name(file_name):
        raise DataError(f"{root}: image file name {file_name!r} leads out of the image folder")
    for folder in IMAGE_FOLDERS:
        path = root / folder / file_name
        if path.is_file():
            return path
    raise DataError(f"{root}: image {file_name} is in none of {', '.join(IMAGE_FOLDERS)}")


def read_image(path: Path) -> Image.Image:
    """Decode an image file to the end: RGB, turned upright by its EXIF orientation.

    Raises:
        DataError: The file cannot be read or decoded, or ends early.
    """
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"{path}: image cannot be read: {' '.join(str(error).split())}") from error


def ordered_splits(names: Collection[str]) -> tuple[str, ...]:
    """Split names in the order of `SPLIT_ORDER`, then others by name."""
    known = [name for name in SPLIT_ORDER if name in names]
    return (*known, *sorted(set(names) - set(SPLIT_ORDER)))


def _samples(layout: Layout) -> tuple[Sample, ...]:
    prefix = f"{layout.dataset}.{layout.split_by}."
    samples = []
    for ref in layout.refs:
        image = layout.images[ref.image_id]
        for sent_id, expression in ref.sentences:
            sample = Sample(
                sample_id=f"{prefix}{sent_id}",
                image_id=ref.image_id,
                file_name=image.file_name,
                height=image.height,
                width=image.width,
                ref_id=ref.ref_id,
                ann_id=ref.ann_id,
                sent_id=sent_id,
                expression=expression,
                split=ref.split,
            )
            samples.append(sample)
    return tuple(samples)
