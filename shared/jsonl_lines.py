"""The lines of a JSONL file of pairs (`shared.jsonl`), each as far as it can be judged without its image."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shared.errors import DataError, short
from shared.json_files import is_finite_number, is_whole_text, plain_utf8
from shared.layout import read_bytes
from shared.split_names import is_split_name

FIELDS = ("image", "expression", "mask", "box", "point", "split")
"""What a line may hold."""

ID = "id"
"""What a line of pairs to predict may hold besides: its owner's name for it, a text or a number."""


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


def parse_lines(path: Path, fields: Sequence[str]) -> list[Line | BadLine]:
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
    repeated: list[str] = []

    def fields_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            repeated.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return row

    try:
        row = json.loads(data, object_pairs_hook=fields_of)
    except (ValueError, RecursionError) as error:
        return BadLine(number=number, fault=f"not JSON: {error}")
    fault = f"field {short(repeated[0])} is given twice" if repeated else _fault(row, fields)
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
    split = row.get("split", "train")
    if not isinstance(split, str) or not split:
        return f"'split' is {short(split)}, not the name of a split"
    if not is_split_name(split):
        return (
            f"'split' is {short(split)}; it names files, so it holds no / \\ or comma and begins with no dot"
        )
    if row.get("mask") == "":
        return "'mask' is ''; leave it out, or write null, where nobody has drawn one"
    if not isinstance(row.get("mask"), dict | list | str | None) or _is_mixed(row.get("mask")):
        return f"'mask' is {short(row['mask'])}; it must be polygons, an RLE, file names or null"
    for name, length in (("box", 4), ("point", 2)):
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, list) or len(value) != length or not all(map(is_finite_number, value)):
            return f"{name!r} is {short(value)}, not a list of {length} numbers"
    if row.get(ID) is not None and not _is_id(row[ID]):
        return f"{ID!r} is {short(row[ID])}, not a text or a number"
    return None


def _numbers(value: list[float] | None) -> tuple[float, ...] | None:
    return None if value is None else tuple(map(float, value))


def _is_mixed(mask: Any) -> bool:
    """Whether a mask is a list of names of files and of what is none."""
    return isinstance(mask, list) and len({isinstance(part, str) and part != "" for part in mask}) > 1
