"""File names that some disks take for the same and others do not: what is there instead of a file that is not found."""

import os
import unicodedata
from functools import lru_cache
from pathlib import Path, PurePosixPath


def nearly_named(folder: Path, file_name: str) -> str:
    """The end of a message about a file that is not there; "" if nothing like it is.

    Data sets that were put together under macOS or Windows, whose disks do not tell upper from lower case, or the two
    forms in which Unicode spells an umlaut, fail where a disk does. Names in the two forms look the same in a message.

    Args:
        folder: Folder that the name is relative to.
        file_name: Name as annotated.
    """
    found = folder
    for part in PurePosixPath(file_name).parts:
        names = _names_by_fold(found)
        own = part if part in names.values() else names.get(_folded(part))
        if own is None:
            return ""
        found /= own
    there = found.relative_to(folder).as_posix()
    if unicodedata.normalize("NFC", there) == unicodedata.normalize("NFC", file_name):
        form = "NFC" if unicodedata.is_normalized("NFC", there) else "NFD"
        return (
            "; there is a file whose name looks the same, but has its accents in another Unicode form: bring the name "
            f"into the form {form}"
        )
    return f"; there is {there!r}, which differs in upper and lower case"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@lru_cache(maxsize=4)
def _names_by_fold(folder: Path) -> dict[str, str]:
    """Names in a folder by what is left of them without case and form. Remembered: many files may be missing."""
    try:
        return {_folded(name): name for name in os.listdir(folder)}
    except OSError:
        return {}
