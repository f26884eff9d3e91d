"""The labelled subset: which training images carry masks.

The split is by image: every referred object of a sampled image is labelled, none of any other image is. The draw is
the published one, `random.seed(seed); random.sample(ids, floor(fraction * N))` over the unique training image ids in
order of first appearance with refs sorted by ref_id, so the same fraction and seed give the published subset.
"""

import hashlib
import json
import math
import random
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.json_files import plain_utf8

_COMMENT = re.compile(r"(?:^|\s)#")
"""Of a line that is no known name as a whole, what follows is a comment."""


def labelled_image_ids(image_ids_in_order: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Draw the labelled images.

    Args:
        image_ids_in_order: Unique training image ids (`ReferDataset.drawn_image_ids()`); order matters.
        fraction: Labelled share of the images in (0, 1], taken as the decimal number it is written as: 0.29 of 100
            is 29, although the product of the floats is just below.
        seed: Seed of the draw; 0 in the published subsets.

    Returns:
        `floor(fraction * N)` ids in order of the draw.

    Raises:
        DataError: A fraction outside (0, 1], or one so small that no image would be labelled.
    """
    if not 0 < fraction <= 1:
        raise DataError(f"labelled fraction {fraction} is not in (0, 1]")
    assert len(set(image_ids_in_order)) == len(image_ids_in_order), "image ids repeat"
    num = math.floor(Fraction(repr(float(fraction))) * len(image_ids_in_order))
    if num < 1:
        raise DataError(
            f"labelled fraction {fraction} of {len(image_ids_in_order)} images with a mask is no image at all; "
            "fraction=1 takes all of them"
        )
    return random.Random(seed).sample(list(image_ids_in_order), num)


def labelled_from_file(path: Path, images: Mapping[int, str]) -> list[int]:
    """Labelled images listed in a file, by id or by file name.

    Args:
        path: As of `read_id_file`, but where that has ids it may have names, as annotated; of an object a list under
            `file_names` counts, if there is one. A line of digits alone is an id, and one that is a name as a whole
            has no comment.
        images: File name of every training image that carries a mask, by id.

    Returns:
        Their ids, in the order of the file.

    Raises:
        DataError: Nothing in the file, no such training image, one image twice, or a name of several images.
    """
    by_name: dict[str, list[int]] = {}
    for image_id, name in images.items():
        by_name.setdefault(name, []).append(image_id)
    seen: dict[int, str] = {}
    for row, value in _rows(path, ("file_names", "image_ids"), by_name):
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise DataError(f"{path}: {row}: {value!r} is neither an image id nor a file name")
        found = by_name.get(value, []) if isinstance(value, str) else [value] if value in images else []
        if not found:
            raise DataError(
                f"{path}: {row}: {value!r} is not a training image of this data set that carries a mask"
            )
        if len(found) > 1:
            raise DataError(f"{path}: {row}: {value!r} is the name of images {found}; give an id instead")
        if found[0] in seen:
            raise DataError(f"{path}: {row}: {value!r} stands at {seen[found[0]]} already")
        seen[found[0]] = row
    return list(seen)


def read_id_file(path: Path) -> list[int]:
    """Read image ids: a JSON list, a JSON object with `image_ids` (a run's `split.json`), or one id a line.

    In the last form blank lines are skipped, and what follows a `#` at the start of a line or behind a blank.

    Raises:
        DataError: The file is missing, empty, or holds something that is no id or one id twice.
    """
    seen: dict[int, str] = {}
    for row, value in _rows(path, ("image_ids",)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataError(f"{path}: {row}: {value!r} is not an image id")
        if value in seen:
            raise DataError(f"{path}: {row}: image id {value} stands at {seen[value]} already")
        seen[value] = row
    return list(seen)


def split_hash(image_ids: Iterable[int]) -> str:
    """A 32-hex-digit hash of a set of image ids; order does not matter."""
    text = ",".join(str(image_id) for image_id in sorted(set(image_ids)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _rows(path: Path, names: Sequence[str], known: Container[str] = ()) -> list[tuple[str, Any]]:
    """What a file lists, each with where it stands.

    Args:
        path: The file.
        names: Of an object the list under the first of these that it has counts.
        known: Lines that have no comment, whatever number signs they hold.
    """
    try:
        text = plain_utf8(Path(path).read_bytes(), path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if text.lstrip().startswith(("[", "{")):
        rows = _json_rows(path, text, names)
    else:
        lines = (
            (f"line {number}", line if line in known else _COMMENT.split(line, maxsplit=1)[0].strip())
            for number, line in enumerate(map(str.strip, text.splitlines()), 1)
        )
        rows = [(row, int(line) if line.isdecimal() else line) for row, line in lines if line]
    if not rows:
        raise DataError(f"{path}: holds no image")
    return rows


def _json_rows(path: Path, text: str, names: Sequence[str]) -> list[tuple[str, Any]]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    values = document
    if isinstance(document, dict):
        values = next((document[name] for name in names if name in document), None)
    if not isinstance(values, list):
        raise DataError(
            f"{path}: expected a list of images, or an object with one under {' or '.join(names)}"
        )
    return [(f"entry {number}", value) for number, value in enumerate(values, 1)]
