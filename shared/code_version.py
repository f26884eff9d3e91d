"""Which code made something: the version of the project and a hash of its source files.

The version alone does not tell two states of a working copy apart, and figures of both may end in one table.
"""

import functools
import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Folder of the packages."""


def code_version(packages: Sequence[str], without: Sequence[str] = ()) -> dict[str, str]:
    """The project's version and a hash over the Python files of some of its packages.

    Args:
        packages: Top-level packages of this project, for example `("shared", "stage2_train")`.
        without: Beginnings of paths that do not count, for example `"stage2_train/report/"`.

    Returns:
        `version` ("" where the project is not installed) and `sources`: 12 hex digits that change with any other `.py`
        file, its name included; an editor's hidden files are none. Both are the same in every copy of the same files.
    """
    try:
        number = version("l2l")
    except PackageNotFoundError:
        number = ""
    return {"version": number, "sources": _hash_of(tuple(sorted(packages)), tuple(without))}


@functools.cache  # of the code this process runs: a change on the disk afterwards is not of it
def _hash_of(packages: tuple[str, ...], without: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if path.name.startswith(".") or name.startswith(without):
                continue
            content = path.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
