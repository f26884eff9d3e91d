"""A Parquet export of Hugging Face `datasets` as a user's own data: images out of its bytes, one JSON line a pair.

| column       | what it may hold                                                                               |
|--------------|------------------------------------------------------------------------------------------------|
| `image`      | `{"bytes": ..., "path": ...}` as `datasets` writes an image, or the file's bytes               |
| `expression` | a text, or a list of texts that all mean the same object                                       |
| `mask`       | optional: an image as above, polygons, one flat polygon, an RLE, `[]` for no target (beside a  |
|              | box: for no mask), or null                                                                     |
| `box`        | optional: four numbers, `[x, y, width, height]` or corners `[x0, y0, x1, y1]`, or null         |
| `split`      | optional: a text; without it the file's name or folder says (`train-00000-of-00004.parquet`,   |
|              | `refcoco_testA.parquet`, `validation/0000.parquet`); a file alone that does not say is train   |

Columns of other names are mapped. Images are named after their content, so one that occurs in many rows is written
once. The JSONL file (`shared.jsonl`) comes last; a killed import is run again and writes what is missing.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from shared.errors import DataError, short
from shared.images import image_size_hw
from shared.json_files import is_finite_number
from shared.runlog import progress
from shared.split_names import usual_split
from shared.store.publish import publishing

REQUIRED = ("image", "expression")
OPTIONAL = ("mask", "box", "split")

_SPLIT = r"((?i:training|train|validation|valid|val|dev|eval)|(?i:test)[A-Z]?)"
_AT_START = re.compile(_SPLIT + r"(?![A-Za-z])")
_AT_END = re.compile(r"(?<![A-Za-z])" + _SPLIT + r"([-_.]?\d+([-_]of[-_]\d+)?)?$")
_BATCH_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class ParquetRow:
    """One row of an export."""

    where: str
    """File and number, for messages."""
    split: str
    """The split that the file's name says."""
    values: Mapping[str, Any]
    """`image`, `expression` and what there is of the optional columns."""


def import_parquet(
    source: Path,
    out: Path,
    *,
    columns: Mapping[str, str] | None = None,
    corners: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the JSONL file and the images beside it.

    Args:
        source: A `.parquet` file, or a folder with such files below it.
        out: The JSONL file to make; must not be there yet.
        columns: Names of columns that are called otherwise, for example `{"expression": "sentence"}`.
        corners: Boxes are `[x0, y0, x1, y1]`.
        quiet: No progress bar.

    Returns:
        `path`, the numbers of `images`, `pairs`, `masks` and pairs without a target (`no_target`), and of pairs by
        split (`splits`).

    Raises:
        DataError: pyarrow is not installed; one of several files does not say which split it is; or a file, column or
            value cannot be used, and file, row and value are named.
    """
    if out.suffix != ".jsonl":
        raise DataError(f"{out}: the file to make must end in .jsonl")
    if out.exists():
        raise DataError(f"{out} is there already; choose another file")
    files = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if not files:
        raise DataError(f"{source}: no .parquet file there")
    for name in columns or {}:
        if name not in (*REQUIRED, *OPTIONAL):
            raise DataError(f"column {name!r}: known are {', '.join((*REQUIRED, *OPTIONAL))}")
    top = source.parent if source.is_file() else source
    return write_rows(read_rows(files, top, columns or {}, quiet), out, corners)


def read_rows(files: list[Path], top: Path, columns: Mapping[str, str], quiet: bool) -> Iterator[ParquetRow]:
    """The rows of some files below `top`, a few at a time in memory; raises as `import_parquet` does."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise DataError("reading Parquet needs pyarrow: pip install 'l2l[parquet]'") from None
    try:
        opened = [(file, parquet.ParquetFile(file)) for file in files]
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{source_of(files)}: not Parquet: {error}") from error
    total = sum(table.metadata.num_rows for _, table in opened)
    split_column = columns.get("split", "split")
    splits = {file: split_of(file.relative_to(top)) for file, _ in opened}
    silent = [
        file
        for file, table in opened
        if splits[file] is None and split_column not in table.schema_arrow.names
    ]
    if silent and len(opened) > 1:
        raise DataError(
            f"{silent[0]}: says neither by its name nor by its folder nor by a column {split_column!r} of which split "
            "it is, and there are other files: a test set would be trained on"
        )
    rows = _rows(opened, columns, {file: split or "train" for file, split in splits.items()})
    yield from progress(rows, total, "importing", quiet, unit="row")


def source_of(files: list[Path]) -> str:
    """A name for some files in a message."""
    return str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"


def _rows(
    opened: list[tuple[Path, Any]], columns: Mapping[str, str], splits: Mapping[Path, str]
) -> Iterator[ParquetRow]:
    for file, table in opened:
        names = chosen_columns(table.schema_arrow.names, columns, str(file))
        number = 0
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=list(names.values())):
            for record in batch.to_pylist():
                values = {name: record[column] for name, column in names.items()}
                yield ParquetRow(where=f"{file}: row {number}", split=splits[file], values=values)
                number += 1


def chosen_columns(found: Iterable[str], columns: Mapping[str, str], where: str) -> dict[str, str]:
    """The file's column for each of ours that it has.

    Raises:
        DataError: It lacks a required column or one that was named.
    """
    found = list(found)
    chosen = {}
    for name in (*REQUIRED, *OPTIONAL):
        column = columns.get(name, name)
        if column in found:
            chosen[name] = column
        elif name in REQUIRED or name in columns:
            known = ", ".join(found)
            raise DataError(f"{where}: has no column {column!r} for {name} (it has {known}); see --column")
    return chosen


def split_of(file: Path) -> str | None:
    """The split that a file's name begins or ends with, or the nearest of its folders; None if none says one.

    It is given its usual name (`shared.split_names`). The path is relative to the folder that was asked for.
    """
    for name in (file.stem, *reversed(file.parts[:-1])):
        found = _AT_START.match(name) or _AT_END.search(name)
        if found is not None:
            return usual_split(found[1])
    return None


def write_rows(rows: Iterable[ParquetRow], out: Path, corners: bool) -> dict[str, Any]:
    """Write images, masks and lines of some rows; result and errors as of `import_parquet`."""
    for folder in ("images", "masks"):
        (out.parent / folder).mkdir(parents=True, exist_ok=True)
    images: set[str] = set()
    splits: Counter[str] = Counter()
    num_masks, num_no_target = 0, 0
    with publishing(out) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            for line in lines_of(row, out.parent, corners):
                file.write(json.dumps(line) + "\n")
                images.add(line["image"])
                splits[line["split"]] += 1
                num_masks += bool(line.get("mask"))
                num_no_target += line.get("mask") == []
    return {
        "path": str(out),
        "images": len(images),
        "pairs": splits.total(),
        "masks": num_masks,
        "no_target": num_no_target,
        "splits": dict(splits),
    }


def lines_of(row: ParquetRow, root: Path, corners: bool) -> list[dict[str, Any]]:
    """The lines that a row becomes, one an expression; its images are written below `root`.

    Raises:
        DataError: A value of another kind than the module's table says.
    """
    values = row.values
    line: dict[str, Any] = {"image": _written_image(values["image"], root, "images", row.where)}
    mask, box = values.get("mask"), values.get("box")
    if mask == [] and box is not None:  # exports write an absent list as an empty one
        mask = None
    if mask is not None:
        line["mask"] = _mask(mask, root, row.where)
    if box is not None:
        line["box"] = _box(box, corners, row.where)
    split = row.split if values.get("split") is None else values["split"]
    if not isinstance(split, str) or not split.strip():
        raise DataError(f"{row.where}: split is {short(split)}, not a text")
    line["split"] = usual_split(split)
    expressions = values["expression"]
    if isinstance(expressions, str):
        expressions = [expressions]
    if not isinstance(expressions, list) or not expressions:
        raise DataError(f"{row.where}: expression is {short(expressions)}, neither a text nor texts")
    for expression in expressions:
        if not isinstance(expression, str) or not expression.strip():
            raise DataError(f"{row.where}: expression is {short(expression)}, not a text")
    return [{"image": line["image"], "expression": expression, **line} for expression in expressions]


def _written_image(value: Any, root: Path, folder: str, where: str) -> str:
    """The name below `root` of an image that is written there, unless it is there already."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        hint = "; export the files' bytes with it" if isinstance(value, dict) and value.get("path") else ""
        raise DataError(f"{where}: {folder[:-1]} is {short(value)}, without the bytes of an image{hint}")
    image_size_hw(f"{where}: {folder[:-1]}", data)  # refuses what is no image
    with Image.open(io.BytesIO(data)) as image:
        suffix = {"JPEG": "jpg"}.get(str(image.format), str(image.format).lower())
    name = f"{folder}/{hashlib.blake2b(data, digest_size=12).hexdigest()}.{suffix}"
    path = root / name
    if not path.exists() or path.stat().st_size != len(data):
        path.write_bytes(data)
    return name


def _mask(value: Any, root: Path, where: str) -> Any:
    """A mask in one of the forms of `shared.jsonl`."""
    if isinstance(value, bytes) or (isinstance(value, dict) and "bytes" in value):
        return _written_image(value, root, "masks", where)
    if isinstance(value, dict) and {"size", "counts"} <= value.keys():
        made: Any = {"size": value["size"], "counts": value["counts"]}
        if isinstance(made["counts"], bytes):
            made["counts"] = made["counts"].decode("latin-1")
    elif isinstance(value, list):
        made = [value] if value and all(isinstance(number, int | float) for number in value) else value
    else:
        raise DataError(f"{where}: mask is {short(value)}, neither an image nor polygons nor an RLE")
    if not _is_plain(made):
        raise DataError(
            f"{where}: mask is {short(value)}, which holds what is neither a number nor ASCII text"
        )
    return made


def _is_plain(value: Any) -> bool:
    """Whether a value consists of lists, objects, finite numbers and ASCII texts."""
    if isinstance(value, dict | list):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value.isascii() if isinstance(value, str) else is_finite_number(value)


def _box(value: Any, corners: bool, where: str) -> list[float]:
    """A box as `[x, y, width, height]`."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_finite_number, value)):
        raise DataError(f"{where}: box is {short(value)}, not a list of 4 numbers")
    x, y, right, bottom = map(float, value)
    return [x, y, right - x, bottom - y] if corners else [x, y, right, bottom]
