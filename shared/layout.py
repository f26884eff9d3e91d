"""What the annotations of a data set say, read and cross-checked, before anybody opens an image.

`shared.refer_layout` and `shared.jsonl` make a `Layout`; `shared.refer` reads by it and `shared.refer_check` checks it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with one row or file."""

    kind: str
    """What is wrong, the same words for every row (problems are counted by it)."""
    file: str
    """The file to mend."""
    row: str
    """Where in it, for example `refs[3] (ref_id 17)`; empty when it is the whole file."""
    detail: str
    """The offending value in words."""
    blocks: bool = True
    """Whether the loader must refuse the data set because of it."""

    @property
    def line(self) -> str:
        """File, row and value on one line."""
        where = f"{self.file}: {self.row}" if self.row else self.file
        return " ".join(f"{where}: {self.detail}".split())


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image of `instances.json`; sizes in pixels."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationRecord:
    """One annotation of `instances.json`; the segmentation is kept as read, None where nobody has drawn a mask."""

    ann_id: int
    image_id: int
    segmentation: Any
    box_xywh_px: tuple[float, ...] | None = None
    """Weak label: left, top, width, height."""
    point_xy_px: tuple[float, ...] | None = None
    """Weak label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefRecord:
    """One referred object; `sentences` are (sent_id, expression) in file order."""

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[tuple[int, str], ...]
    no_target: bool = False
    """Whether the expression names nothing in the image; its mask is then empty by definition."""


OWN_ROW = "line"
"""What a row of a user's own data is called: `Layout.row_name`."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A data set's annotations as far as their rows are sound, whatever files they come from."""

    root: Path
    dataset: str
    split_by: str
    instances_path: Path
    """The file that holds the masks."""
    refs_path: Path
    """The file that holds the expressions."""
    image_folders: tuple[str, ...]
    """Where images are looked for below the root, in this order; "" is the root itself."""
    images: dict[int, ImageRecord]
    annotations: dict[int, AnnotationRecord]
    refs: list[RefRecord]
    """Sound refs, sorted by `ref_id`."""
    problems: list[Problem] = field(repr=False)
    """In order of finding: images, annotations, refs."""
    fingerprint: str
    """32 hex digits of a hash over what priors depend on; of a REFER data set over the bytes of both files."""
    row_name: str = "annotation"
    """What a row of `instances_path` is called in messages; its number is the annotation id."""


def read_bytes(path: Path, hint: str = "") -> bytes:
    """A whole file; `hint` is added to the message where there is none.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: not found{hint}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
