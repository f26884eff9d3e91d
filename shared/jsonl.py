"""A user's own data: one JSON object a line, one line a pair of image and expression.

    {"image": "a.jpg", "expression": "the red mug", "mask": ..., "box": [x, y, w, h], "point": [x, y], "split": "val"}

- `image`: file name relative to the JSONL file's folder. Required, as `expression` is.
- `mask`: polygons, an RLE (see `shared.masks`), the name of a mask image, or `[]`: nothing in the image is meant.
  Without it, or with null, the pair is unlabelled.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shared.errors import DataError, short
from shared.image_pack import ImageStore
from shared.images import find_image
from shared.json_files import is_finite_number, is_whole_text, plain_utf8
from shared.layout import OWN_ROW, AnnotationRecord, ImageRecord, Layout, Problem, RefRecord, read_bytes
from shared.masks import MaskFile, Targets
from shared.refer import ReferDataset, open_layout

FIELDS = ("image", "expression", "mask", "box", "point", "split")
"""What a line may hold."""

ID = "id"
"""What a line of pairs to predict may hold besides: its owner's name for it, a text or a number."""

SPLIT_BY = "jsonl"
"""`split_by` of such data."""

BORDER_PX = 1.0
"""Boxes and points may leave the image by this much."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line, as far as it can be judged without its image."""

    number: int
    """Number of the line, from 1."""
    image: str
    """File name relative to the file's folder, in its plain form: one image, one name."""
    expression: str
    """The expression, outer blanks stripped."""
    mask: Any
    """As written; None where there is none."""
    box_xywh_px: tuple[float, ...] | None
    """Weak label: left, top, width, height."""
    point_xy_px: tuple[float, ...] | None
    """Weak label."""
    split: str
    """Its split."""
    own_id: str | float | None = None
    """Its owner's name for it (`ID`); None where there is none."""


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line that does not hold together."""

    number: int
    """Number of the line, from 1."""
    fault: str
    """What is wrong with it."""
    own_id: str | float | None = None
    """Its owner's name for it (`ID`), as far as that can be read."""


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
    lines = _lines(Path(path), (*FIELDS, ID))
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
        for line in _lines(self.path, FIELDS):
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
        segmentation: Any = line.mask
        if line.mask == []:
            segmentation = Targets(parts=())
        elif isinstance(line.mask, str):
            try:
                segmentation = MaskFile(path=find_image(self.path.parent, line.mask, ("",)))
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


def _lines(path: Path, fields: Sequence[str]) -> list[Line | BadLine]:
    """Every line but blank ones and comments; `fields` are those that it may hold.

    Raises:
        DataError: The file cannot be read, or is of another format.
    """
    numbered = enumerate(plain_utf8(read_bytes(path), path).splitlines(), start=1)
    written = [
        (number, data) for number, data in numbered if data.strip() and not data.lstrip().startswith(b"#")
    ]
    lines = [_line(number, data, fields) for number, data in written]
    if lines and isinstance(lines[0], BadLine):
        number, data = written[0]
        if other := _other_format(data.strip(), any(isinstance(line, Line) for line in lines)):
            raise DataError(
                f"{path}: line {number}: this looks like {other}; one JSON object a line is expected"
            )
    return lines


def _other_format(first: bytes, has_sound_line: bool) -> str:
    """What a file is instead of JSONL, by its first line, which is none of JSONL; "" if that does not say so."""
    if first == b"[" or first.startswith(b"[{"):
        return "a JSON list"
    if first == b"{":
        return "JSON over several lines"
    is_table = not has_sound_line and not first.startswith((b"[", b"{")) and re.search(rb"[,;\t]", first)
    return "CSV" if is_table else ""


def _line(number: int, data: bytes, fields: Sequence[str]) -> Line | BadLine:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        return BadLine(number=number, fault=f"not JSON: {error}")
    fault = _fault(row, fields)
    if fault:
        own_id = row.get(ID) if isinstance(row, dict) else None
        return BadLine(number=number, fault=fault, own_id=own_id if _is_id(own_id) else None)
    return Line(
        number=number,
        image=str(PurePosixPath(row["image"])),  # ./a.jpg is a.jpg
        expression=row["expression"].strip(),
        mask=row.get("mask"),
        box_xywh_px=_numbers(row.get("box")),
        point_xy_px=_numbers(row.get("point")),
        split=row.get("split") or "train",
        own_id=row.get(ID),
    )


def _is_id(value: Any) -> bool:
    return is_whole_text(value) if isinstance(value, str) else is_finite_number(value)


def _fault(row: Any, fields: Sequence[str]) -> str | None:
    """What is wrong with a line's fields, or None."""
    if not isinstance(row, dict):
        return f"expected an object, found {type(row).__name__}"
    for name in row:
        if name not in fields:
            return f"unknown field {name!r} (known: {', '.join(fields)})"
    for name in ("image", "expression"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            return f"{name!r} is {short(row.get(name))}, not a text"
        if not is_whole_text(row[name]):
            return f"{name!r} is {short(row[name])}, which holds half a character"
    if not isinstance(row.get("split", ""), str) or row.get("split") == "":
        return f"'split' is {short(row['split'])}, not the name of a split"
    if row.get("mask") == "":
        return "'mask' is ''; leave it out, or write null, where nobody has drawn one"
    if not isinstance(row.get("mask"), dict | list | str | None):
        return f"'mask' is {short(row['mask'])}; it must be polygons, an RLE, a file name or null"
    for name, length in (("box", 4), ("point", 2)):
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, list) or len(value) != length or not all(map(is_finite_number, value)):
            return f"{name!r} is {short(value)}, not a list of {length} numbers"
    if row.get(ID) is not None and not _is_id(row[ID]):
        return f"{ID!r} is {short(row[ID])}, not a text or a number"
    return None


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


def _numbers(value: list[float] | None) -> tuple[float, ...] | None:
    return None if value is None else tuple(map(float, value))


def _fingerprint(refs: list[RefRecord], images: dict[str, ImageRecord | None]) -> str:
    by_id = {image.image_id: image for image in images.values() if image is not None}
    digest = hashlib.blake2b(digest_size=16)
    for ref in refs:
        image = by_id[ref.image_id]
        row = [ref.ref_id, image.file_name, image.height, image.width, ref.sentences[0][1], ref.split]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
