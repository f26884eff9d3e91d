"""JSON objects in files: read with a clear message, written whole or not at all; and what JSON and editors let pass."""

import codecs
import json
import math
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.store.publish import publish_file


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: No such file, or no JSON object in it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value


def plain_utf8(data: bytes, path: Path | str) -> bytes:
    """The bytes of a text file without the mark that some editors put before UTF-8.

    Raises:
        DataError: The mark is that of UTF-16.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all, whoever else writes it at the same time."""
    publish_file(path, (json.dumps(value, indent=1, default=str) + "\n").encode())


def is_whole_text(value: str) -> bool:
    """Whether a text can be written as UTF-8; JSON lets half of an emoji pass, and no tokenizer takes it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_finite_number(value: Any) -> bool:
    """Whether a value read from JSON is a number that a float can hold; JSON itself knows no largest one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def object_of_line(line: bytes) -> dict[str, Any]:
    """The object of a line of JSONL that an earlier start wrote; empty for what a kill left of one, or what is none."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
