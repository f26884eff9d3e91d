"""Reads JSON files of which some may be missing or torn: what could not be read is named, never raised."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, missing: list[str]) -> dict[str, Any]:
    """The object in `path`, or an empty one and a line in `missing`."""
    relative = _relative(path)
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        missing.append(f"{relative}: missing")
        return {}
    except (OSError, ValueError) as error:
        missing.append(f"{relative}: unreadable ({error})")
        return {}
    if not isinstance(value, dict):
        missing.append(f"{relative}: not a JSON object")
        return {}
    return value


def read_jsonl(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """The objects in `path`; lines that are no JSON object are counted in `missing`, not raised."""
    relative = _relative(path)
    try:
        lines = path.read_text("utf-8", errors="replace").split("\n")
    except OSError:
        missing.append(f"{relative}: missing")
        return []
    rows, bad = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad.append(number)
    if bad:
        missing.append(f"{relative}: {len(bad)} unreadable line(s), first at line {bad[0]}")
    return rows


def _relative(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent.name == "eval" else path.name
