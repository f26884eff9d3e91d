"""A user's own data: one JSON object a line, one line a pair of image and expression.

    {"image": "a.jpg", "expression": "the red mug", "mask": ..., "box": [x, y, w, h], "point": [x, y], "split": "val"}

- `image`: file name relative to the JSONL file's folder. Required, as `expression` is.
- `mask`: polygons, an RLE (see `shared.masks`), the name of a mask image or a list of names, which are united, or `[]`:
  nothing in the image is meant. Without it, or with null, the pair is unlabelled.
- `box`, `point`: weak labels in pixels of the upright image, origin at its top left corner. Optional.
- `split`: `train` where it is left out.

Blank lines and lines that start with `#` are skipped. An unknown field is an error: a misspelt "mask" would otherwise
be a mask lost. Numbers of lines (from 1) serve as ids: of the pair, its mask, and of an image the first that names it.

The fingerprint covers images' names and sizes, expressions and splits, but no labels: priors do not depend on them, so
drawing more masks does not call for asking the frozen model again.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import DataError, short
from shared.image_pack import ImageStore
from shared.images import find_image
from shared.jsonl_lines import FIELDS, ID, BadLine, Line, parse_lines
from shared.layout import OWN_ROW, AnnotationRecord, ImageRecord, Layout, Problem, RefRecord
from shared.masks import MaskFile, Targets
from shared.refer import ReferDataset, open_layout

SPLIT_BY = "jsonl"
"""`split_by` of such data."""

BORDER_PX = 1.0
"""Boxes and points may leave the image by this much."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}")


def load_jsonl(path: str | Path) -> ReferDataset:
    """Load a user's own data (module docstring).

    Raises:
        DataError: The file or an image is missing or unreadable, or a line cannot be used; one line naming file, row
            and value of the first.
    """
    return open_layout(read_jsonl(path))


def read_jsonl(path: str | Path) -> Layout:
    """Read and check every line and the head of every image.

    Raises:
        DataError: The file cannot be read at all; what is wrong with single lines is returned as problems.
    """
    path = Path(path)
    reader = _Reader(path)
    refs = [ref for ref in map(reader.ref, reader.lines()) if ref is not None]
    return Layout(
        root=path.parent,
        dataset=dataset_name(path),
        split_by=SPLIT_BY,
        instances_path=path,
        refs_path=path,
        images={image.image_id: image for image in reader.images.values() if image is not None},
        annotations=reader.annotations,
        refs=refs,
        problems=reader.problems,
        fingerprint=_fingerprint(refs, reader.images),
        image_folders=("",),
        row_name=OWN_ROW,
    )


def dataset_name(path: str | Path) -> str:
    """Name of the data set: the file's without its ending.

    Raises:
        DataError: It holds characters that do not belong in names of samples and stores.
    """
    name = Path(path).stem
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{path}: rename the file to at most 40 of A-Z a-z 0-9 _ . + -; it names the data set"
        )
    return name


def read_lines(path: str | Path) -> list[Line]:
    """The lines of a file of training data whose images need not be readable (`l2l data pack`).

    Raises:
        DataError: The file, or a line of it, cannot be used; the first is named.
    """
    reader = _Reader(Path(path))
    lines = list(reader.lines())
    if reader.problems:
        raise DataError(reader.problems[0].line)
    if not lines:
        raise DataError(f"{path}: holds no line")
    return lines


def read_pairs(path: str | Path) -> list[Line | BadLine]:
    """The lines of a file whose images need not exist yet (`l2l predict`), in order; each may have an `ID`.

    Raises:
        DataError: The file cannot be read, or holds no line.
    """
    lines = parse_lines(Path(path), (*FIELDS, ID))
    if not lines:
        raise DataError(f"{path}: holds no line")
    return lines


class _Reader:
    """Reads line after line; what is wrong is kept in `problems`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = ImageStore(path.parent, ("",))
        self.images: dict[str, ImageRecord | None] = {}
        self.annotations: dict[int, AnnotationRecord] = {}
        self.problems: list[Problem] = []

    def _report(self, kind: str, number: int, detail: str) -> None:
        self.problems.append(Problem(kind=kind, file=str(self.path), row=f"line {number}", detail=detail))

    def lines(self) -> Iterator[Line]:
        """The lines that hold together."""
        for line in parse_lines(self.path, FIELDS):
            if isinstance(line, Line):
                yield line
            else:
                self._report("malformed line", line.number, line.fault)

    def ref(self, line: Line) -> RefRecord | None:
        """The line as a ref of its own, its image and annotation noted; None if it cannot be used."""
        image = self._image(line)
        if image is None:
            return None
        outside = _outside(line, image)
        if outside:
            self._report("label outside its image", line.number, outside)
            return None
        try:
            segmentation = self._segmentation(line.mask)
        except DataError as error:
            self._report("missing mask file", line.number, f"mask {short(line.mask)}: {error}")
            return None
        self.annotations[line.number] = AnnotationRecord(
            ann_id=line.number,
            image_id=image.image_id,
            segmentation=segmentation,
            box_xywh_px=line.box_xywh_px,
            point_xy_px=line.point_xy_px,
        )
        return RefRecord(
            ref_id=line.number,
            ann_id=line.number,
            image_id=image.image_id,
            split=line.split,
            sentences=((line.number, line.expression),),
            no_target=line.mask == [],
        )

    def _segmentation(self, mask: Any) -> Any:
        """A mask as `shared.masks` knows it; raises DataError for a file that is not there."""
        if isinstance(mask, str):
            return MaskFile(path=find_image(self.path.parent, mask, ("",)))
        if isinstance(mask, list) and all(isinstance(part, str) for part in mask):
            return Targets(parts=tuple(map(self._segmentation, mask)))
        return mask

    def _image(self, line: Line) -> ImageRecord | None:
        """The image of a line; its head is read once, and a fault reported once."""
        if line.image not in self.images:
            try:
                height, width = self.store.size_hw(line.image)
            except DataError as error:
                self.images[line.image] = None
                self._report("unusable image", line.number, f"image {short(line.image)}: {error}")
            else:
                self.images[line.image] = ImageRecord(
                    image_id=line.number, file_name=line.image, height=height, width=width
                )
        return self.images[line.image]


def _outside(line: Line, image: ImageRecord) -> str | None:
    """How a box or point leaves its image, or None."""
    size = f"an image of width {image.width} and height {image.height}"
    if line.box_xywh_px is not None:
        x, y, width, height = line.box_xywh_px
        inside = x >= -BORDER_PX and x + width <= image.width + BORDER_PX
        inside = inside and y >= -BORDER_PX and y + height <= image.height + BORDER_PX
        if not inside or min(width, height) <= 0:
            return f"box {list(line.box_xywh_px)} (x, y, width, height) is empty or leaves {size}"
    if line.point_xy_px is not None:
        x, y = line.point_xy_px
        if not (0 <= x <= image.width and 0 <= y <= image.height):
            return f"point {list(line.point_xy_px)} (x, y) lies outside {size}"
    return None


def _fingerprint(refs: list[RefRecord], images: dict[str, ImageRecord | None]) -> str:
    by_id = {image.image_id: image for image in images.values() if image is not None}
    digest = hashlib.blake2b(digest_size=16)
    for ref in refs:
        image = by_id[ref.image_id]
        row = [ref.ref_id, image.file_name, image.height, image.width, ref.sentences[0][1], ref.split]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
