"""Referring-expression data: samples, images and masks, read through one interface whatever files they come from.

The REFER layout is read here, a user's own JSONL file in `shared.jsonl`; both give a `Layout` and this reader.

    ROOT/images/[train2014/]...  or  ROOT/images/mscoco/images/train2014/...  or  ROOT/images/saiapr_tc-12/...
    ROOT/<dataset>/refs(<split_by>).p  or, with several targets or none,  grefs(<split_by>).json
    ROOT/<dataset>/instances.json
    ROOT/images.h5, if there: the images in one file (`shared.image_pack`)

Loading reads the two annotation files and no image. Every sample's image and annotation are known to exist in the
annotations once `load_refer` has returned; what is wrong with an image file or a segmentation shows when it is read.
Masks leave only through `.mask` and `.box_xyxy_px`, so a reader made by `without_masks` cannot leak one.

A difference from the REFER API: overlapping polygons of one object are united, where it adds them up (and users of
it that compare with 1 lose the overlap).
"""

import copy
import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.image_pack import ImageStore
from shared.images import scales_down
from shared.layout import Layout
from shared.masks import decode_segmentation, rle_box_xyxy_px, segmentation_hash, segmentation_rle
from shared.refer_layout import collector_paused, read_layout
from shared.split_names import ordered_splits
from shared.types import Sample


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

    def image(self, sample: Sample, at_least_hw: tuple[int, int] | None = None) -> Image.Image:
        """The original image as RGB, `sample.width` x `sample.height`; smaller by choice (see `ReferDataset`)."""

    def image_identity(self, file_name: str) -> Path | tuple[int, str] | None:
        """What stands for an image file: its path, or its size and hash in a pack; None if it is nowhere."""

    def has_mask(self, sample: Sample) -> bool:
        """Whether somebody has drawn a mask for it; says nothing about whether this reader may see it."""

    def mask(self, sample: Sample) -> np.ndarray:
        """`bool [H, W]` at the original size."""

    def require_masks(self, samples: Sequence[Sample]) -> None:
        """Refuse the first of some samples whose mask cannot be read."""

    def masks_hash(self, samples: Sequence[Sample]) -> str:
        """Of what was drawn for some samples: masks may be corrected, and the data set is the same one still."""

    def box_xyxy_px(self, sample: Sample) -> np.ndarray:
        """Tight box of the mask, `float32 [4]`, pixels of the original image."""

    def weak_box_xyxy_px(self, sample: Sample) -> np.ndarray | None:
        """The box that is given beside or instead of a mask, `float32 [4]`."""

    def weak_point_xy_px(self, sample: Sample) -> np.ndarray | None:
        """The point that is given beside or instead of a mask, `float32 [2]`."""

    def train_image_ids(self) -> list[int]:
        """Unique image ids of the train split in order of first appearance."""

    def drawn_image_ids(self) -> list[int]:
        """Those of them that carry a mask."""

    def image_names(self) -> dict[int, str]:
        """File name of every image by its id."""

    def without_masks(self, keep_image_ids: Collection[int]) -> "ReferringDataset":
        """The same data set, with the masks of `keep_image_ids` alone."""

    def only(self, samples: Sequence[Sample]) -> "ReferringDataset":
        """The same data set with these samples alone, and masks as before."""

    def fingerprint(self) -> str:
        """Hash of the annotations; equal for equal annotations."""


class ReferDataset:
    """Reader of one data set; made by `load_refer` or `shared.jsonl.load_jsonl`."""

    def __init__(self, layout: Layout) -> None:
        self.root = layout.root
        self.dataset = layout.dataset
        self.split_by = layout.split_by
        self._instances_path, self._row_name = layout.instances_path, layout.row_name
        self._images = ImageStore(layout.root, layout.image_folders)
        self._fingerprint = layout.fingerprint
        self._samples = _samples(layout)
        train_refs = (ref for ref in layout.refs if ref.split == "train")
        self._train_image_ids = list(dict.fromkeys(ref.image_id for ref in train_refs))
        needed = {sample.ann_id for sample in self._samples}
        drawn = {ann: layout.annotations[ann].segmentation for ann in needed}
        self._segmentations: dict[int, Any] = {
            ann: shape for ann, shape in drawn.items() if shape is not None
        }
        self._drawn_anns = frozenset(self._segmentations)
        self._weak_boxes = {ann: layout.annotations[ann].box_xywh_px for ann in needed}
        self._weak_points = {ann: layout.annotations[ann].point_xy_px for ann in needed}
        self._masked_image_ids: frozenset[int] | None = None  # None: masks of all images
        self._sound_anns: set[int] = set()

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

    def drawn_image_ids(self) -> list[int]:
        """Those of `train_image_ids` that carry a mask of a train reference: all, in the REFER layout."""
        drawn = {s.image_id for s in self._samples if s.split == "train" and self.has_mask(s)}
        return [image_id for image_id in self._train_image_ids if image_id in drawn]

    def image_names(self) -> dict[int, str]:
        """File name of every image that a sample is about, by its id; a name as annotated."""
        return {sample.image_id: sample.file_name for sample in self._samples}

    def fingerprint(self) -> str:
        """32 hex digits of a hash over the annotations that priors depend on (images are not covered)."""
        return self._fingerprint

    def image_path(self, image: Sample | str) -> Path:
        """The loose file of an image, given its sample or file name.

        Raises:
            DataError: It is in none of the image folders, or its name leads out of them.
        """
        return self._images.path(image if isinstance(image, str) else image.file_name)

    def image_identity(self, file_name: str) -> Path | tuple[int, str] | None:
        """What stands for an image file: its path, or its size and hash in a pack; None if it is nowhere."""
        pack = self._images.pack
        if pack and file_name in pack:
            size, digest = pack.size_and_digest(file_name)
            return size, digest.hex()
        try:
            return self._images.path(file_name)
        except DataError:
            return None

    def replaced_images(self, file_names: Iterable[str]) -> list[str]:
        """Those of some images that are read from a pack while another file lies beside it (`ImageStore.replaced`)."""
        return self._images.replaced(file_names)

    def image(self, sample: Sample, at_least_hw: tuple[int, int] | None = None) -> Image.Image:
        """The original image as RGB, turned upright where its EXIF data say so.

        Args:
            sample: Names the image.
            at_least_hw: Height and width to which the caller will shrink it: a large JPEG is then decoded at a reduced
                scale (see `shared.images.read_image`).

        Raises:
            DataError: The file is missing, cannot be decoded to the end, or is not of the annotated size.
        """
        name = sample.file_name
        if at_least_hw is not None and scales_down((sample.height, sample.width), at_least_hw):
            image = self._images.read(name, at_least_hw)
            height, width = self._images.size_hw(name)
        else:
            image = self._images.read(name)
            height, width = image.height, image.width
        if (height, width) != (sample.height, sample.width):
            raise DataError(
                f"{self._images.place(name)}: image {sample.image_id}: width x height {width} x {height}, "
                f"but {self._instances_path} says {sample.width} x {sample.height}"
            )
        return image

    def has_mask(self, sample: Sample) -> bool:
        """Whether somebody has drawn a mask for it; says nothing about whether this reader may see it."""
        return sample.ann_id in self._drawn_anns

    def mask(self, sample: Sample) -> np.ndarray:
        """The object's mask, `bool [H, W]` at the original size; all False if its polygons cover no pixel.

        Raises:
            DataError: A malformed segmentation, or none.
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

    def require_masks(self, samples: Sequence[Sample]) -> None:
        """Read the masks of some samples, each once in the life of this reader; raises as `mask` does."""
        for sample in samples:
            if sample.ann_id not in self._sound_anns:
                self.box_xyxy_px(sample)
                self._sound_anns.add(sample.ann_id)

    def weak_box_xyxy_px(self, sample: Sample) -> np.ndarray | None:
        """A box given beside or instead of a mask, never made from one: `float32 [4]` x0, y0, x1, y1, pixels."""
        box = self._weak_boxes[sample.ann_id]
        if box is None:
            return None
        x, y, width, height = box
        return np.array([x, y, x + width, y + height], dtype=np.float32)

    def weak_point_xy_px(self, sample: Sample) -> np.ndarray | None:
        """A point given beside or instead of a mask: `float32 [2]` x, y, pixels."""
        point = self._weak_points[sample.ann_id]
        return None if point is None else np.array(point, dtype=np.float32)

    def without_masks(self, keep_image_ids: Collection[int]) -> "ReferDataset":
        """A reader that holds the segmentations of `keep_image_ids` alone.

        The others are dropped, not hidden: asking for one raises `MaskAccessError`.
        """
        keep = frozenset(keep_image_ids)
        if self._masked_image_ids is not None:
            keep &= self._masked_image_ids
        kept_anns = {sample.ann_id for sample in self._samples if sample.image_id in keep} & self._drawn_anns
        reader = copy.copy(self)
        reader._segmentations = {ann: shape for ann, shape in self._segmentations.items() if ann in kept_anns}
        reader._masked_image_ids = keep
        reader._sound_anns = set()
        return reader

    def only(self, samples: Sequence[Sample]) -> "ReferDataset":
        """A reader that holds these samples alone, and of masks, boxes and points what belongs to them.

        For other processes, to which all of a data set need not travel. It gives out no mask that this one does not,
        and its fingerprint is that of the whole.
        """
        anns = {sample.ann_id for sample in samples}
        images = {sample.image_id for sample in samples if sample.split == "train"}
        reader = copy.copy(self)
        reader._samples = tuple(samples)
        reader._train_image_ids = [image_id for image_id in self._train_image_ids if image_id in images]
        reader._drawn_anns = self._drawn_anns & anns
        reader._segmentations = {ann: self._segmentations[ann] for ann in anns & self._segmentations.keys()}
        reader._weak_boxes = {ann: self._weak_boxes[ann] for ann in anns}
        reader._weak_points = {ann: self._weak_points[ann] for ann in anns}
        if self._masked_image_ids is not None:
            reader._masked_image_ids = self._masked_image_ids & {sample.image_id for sample in samples}
        reader._sound_anns = self._sound_anns & anns
        return reader

    def masks_hash(self, samples: Sequence[Sample]) -> str:
        """32 hex digits of the masks of some samples, whatever their order; an object's mask counts once.

        Raises:
            DataError: A sample without a mask, or a mask's file that cannot be read.
        """
        drawn: dict[int, str] = {}
        digest = hashlib.blake2b(digest_size=16)
        for sample in sorted(samples, key=lambda one: one.sample_id):
            if sample.ann_id not in drawn:
                drawn[sample.ann_id] = segmentation_hash(self._segmentation(sample))
            digest.update(f"{sample.sample_id} {drawn[sample.ann_id]}\n".encode())
        return digest.hexdigest()

    def _segmentation(self, sample: Sample) -> Any:
        if self._masked_image_ids is not None and sample.image_id not in self._masked_image_ids:
            raise MaskAccessError(
                f"mask of {sample.sample_id} (image {sample.image_id}) is not for this reader"
            )
        if not self.has_mask(sample):
            raise self._segmentation_error(sample, "has no mask")
        return self._segmentations[sample.ann_id]

    def _segmentation_error(self, sample: Sample, fault: object) -> DataError:
        return DataError(f"{self._instances_path}: {self._row_name} {sample.ann_id}: {fault}")


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
    return open_layout(read_layout(root, dataset, split_by))


def open_layout(layout: Layout) -> ReferDataset:
    """A reader of annotations that hold together; raises DataError for the first that does not."""
    require_sound(layout)
    if not any(ref.sentences for ref in layout.refs):
        raise DataError(f"{layout.refs_path}: holds no expression")
    with collector_paused():
        return ReferDataset(layout)


def require_sound(layout: Layout) -> Layout:
    """The layout itself; raises DataError for the first row that does not hold together."""
    blocking = [problem for problem in layout.problems if problem.blocks]
    if blocking:
        more = f" (and {len(blocking) - 1} more problems)" if len(blocking) > 1 else ""
        raise DataError(blocking[0].line + more)
    return layout


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
                no_target=ref.no_target,
            )
            samples.append(sample)
    return tuple(samples)
