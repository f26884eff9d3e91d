"""What images count as: hashes of their bytes, of which only those are read that have changed since the last look.

    CACHE_ROOT/image-hashes/<dataset>.json   {path: [size, time of modification, time of change, hash]}

Stage 1 notes in its store what it has seen, and stage 2 compares. Imports neither torch nor vLLM.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from shared.errors import DataError
from shared.image_pack import digest_of
from shared.runlog import progress
from shared.store.publish import clean_partials, disk_errors, publish_file

MISSING_IMAGE, UNREADABLE_IMAGE = "missing", "unreadable"
LOST = (MISSING_IMAGE, UNREADABLE_IMAGE)
"""What stands for an image without bytes."""

_HASH = re.compile("[0-9a-f]{32}")
"""A hash as it is remembered; anything else is damage, and the file is read again."""

SAVE_EVERY = 4096
"""Files that are read before their hashes are saved, beside what is saved at the end and when it is interrupted."""


def memory_of(cache_root: str | Path, name: str) -> Path:
    """Where the hashes of a data set's images are remembered."""
    return Path(cache_root) / "image-hashes" / f"{name}.json"


class ImageHasher:
    """Content hashes of image files, remembered by (path, size, times of change) in one JSON file.

    The first run over a data set reads every image once; later runs only look at sizes and times. A program can set the
    modification time back (`exiftool -P`), but not the time at which the disk noted any change; a copy renews it too.
    The inode is left out: some network disks number files anew at every mount.
    """

    def __init__(self, memory: Path) -> None:
        """Read the memory; a missing or damaged one is an empty one."""
        self._memory = memory
        self._known: dict[str, list] = {}
        self._changed = False
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
            if isinstance(known, dict):
                self._known = known
        except (OSError, ValueError):
            pass

    def known_hash(self, path: Path) -> str | None:
        """Hash of a file as it was when it was read last; None if it has not been read, or has changed."""
        try:
            stamp = _stamp(path)
        except OSError:
            return None
        known = self._known.get(str(path.absolute()))
        if not isinstance(known, list) or known[:-1] != stamp or not _HASH.fullmatch(str(known[-1])):
            return None
        return str(known[-1])

    def read_hash(self, path: Path) -> str:
        """Hash of a file's bytes; `"unreadable"` for a file that cannot be read (its rows become image errors)."""
        try:
            stamp, value = _stamp(path), digest_of(path.read_bytes()).hex()
        except OSError:
            return UNREADABLE_IMAGE
        self._known[str(path.absolute())] = [*stamp, value]
        self._changed = True
        return value

    def save(self) -> None:
        """Write the memory if anything was added, so that readers never see half of it.

        Raises:
            DataError: The disk is full, or may not be written to.
        """
        if not self._changed:
            return
        with disk_errors(self._memory, "the hashes of images"):
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            clean_partials(self._memory.parent)
            publish_file(self._memory, json.dumps(self._known).encode())
        self._changed = False


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def identify_images(
    images: Iterable[tuple[str, Path | tuple[int, str] | None]],
    mode: str,
    memory: Path,
    *,
    must_save: bool = True,
    quiet: bool = True,
) -> dict[str, str]:
    """What every image counts as, by name.

    Args:
        images: (name, what stands for it), any order; every name once. That is a path, the size and content hash of
            a packed file, or None if there is none.
        mode: `"content"`: bytes count. `"size"`: only name and size count.
        memory: Where content hashes are remembered.
        must_save: Whether a memory that cannot be written is an error; else those images are read again next time.
        quiet: No progress bar over the files that have to be read.

    Returns:
        `"missing"` or `"unreadable"`; else the hash of the file's bytes, 32 hex digits, or with mode `"size"` their
        number.

    Raises:
        DataError: The memory cannot be written.
    """
    hasher, values, unread = ImageHasher(memory), dict[str, str](), list[tuple[str, Path]]()
    for name, path in images:
        if path is None:
            values[name] = MISSING_IMAGE
        elif isinstance(path, tuple):
            values[name] = path[1] if mode == "content" else str(path[0])
        elif mode == "size":
            values[name] = _size_of(path)
        elif (known := hasher.known_hash(path)) is not None:
            values[name] = known
        else:
            unread.append((name, path))
    try:
        bar = progress(unread, len(unread), "hashing", quiet or not unread, unit="image")
        for number, (name, path) in enumerate(bar, 1):
            values[name] = hasher.read_hash(path)
            if number % SAVE_EVERY == 0:
                _save(hasher, must_save)
    finally:
        _save(hasher, must_save)
    return values


def _save(hasher: ImageHasher, must_save: bool) -> None:
    try:
        hasher.save()
    except (DataError, OSError):
        if must_save:
            raise


def _size_of(path: Path) -> str:
    try:
        return str(path.stat().st_size)
    except OSError:
        return UNREADABLE_IMAGE


def content_hashes(identities: Mapping[str, str]) -> dict[str, bytes]:
    """The hashes among what `identify_images` found with mode `"content"`, by name; images without one are left out."""
    return {name: bytes.fromhex(value) for name, value in identities.items() if value not in LOST}
