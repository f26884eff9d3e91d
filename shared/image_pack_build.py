"""Builds the pack of a data set's images (`shared.image_pack`), and brings it up to date.

A killed build goes on where it stopped: images are appended to a flat file with an index beside it, and turned into
HDF5, which a kill would tear, in one go at the end.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.image_pack import PACK_FORMAT, PACK_NAME, ImagePack, digest_of, loose_bytes
from shared.images import file_exists, image_size_hw
from shared.locks import locked
from shared.runlog import progress
from shared.store.publish import disk_errors, publishing
from shared.store.schema import IMAGE_HASH_BYTES

CURRENT, DAMAGED, REPLACED = "current", "damaged", "replaced"
"""How an image in a pack stands: as it was packed; not readable; of other bytes than its loose file has by now."""

_COPY_BYTES = 2**24


def build_pack(
    root: Path, names: Sequence[str], folders: Sequence[str], *, quiet: bool = False
) -> dict[str, Any]:
    """Pack images, or add those that a pack lacks; run it again to go on after a kill, or to bring it up to date.

    What is damaged in a pack is taken from the loose files again, as is a loose file that is another one by now.

    Args:
        root: Folder of the data set.
        names: Image names.
        folders: Folders below `root` that hold them.
        quiet: No progress bar.

    Returns:
        `path`, `images` in the pack, `added` by this run, `mended` and `replaced` by it, and `bytes`.

    Raises:
        DataError: An image that is missing or cannot be read as a file, a full disk, or another process that packs.
    """
    with ExitStack() as held:
        with disk_errors(root, "the pack", "the images are safe"):
            held.enter_context(locked(root / f".{PACK_NAME}.lock", 0.0))
        return _packed(root, names, folders, quiet)


def _packed(root: Path, names: Sequence[str], folders: Sequence[str], quiet: bool) -> dict[str, Any]:
    """The work of `build_pack`, by the one process that may write the pack."""
    path = root / PACK_NAME
    old = ImagePack(path) if file_exists(path) else None
    try:
        old_names = old.names if old else []
    except DataError:
        old, old_names = None, []  # not even its list can be read: it is built anew
    states = {
        name: _state(old, _loose(root, name, folders), name)
        for name in progress(old_names, len(old_names), "checking", quiet)
        if old
    }
    wanted = list(dict.fromkeys([*old_names, *names]))
    added = len(wanted) - len(old_names)
    damaged, replaced = (sum(state == one for state in states.values()) for one in (DAMAGED, REPLACED))
    if added or damaged or replaced or not old:

        def bytes_of(name: str) -> bytes:
            if old and states.get(name) == CURRENT:
                return old.read(name)
            return loose_bytes(root, name, folders)

        try:
            _build(path, wanted, bytes_of, quiet)
        except (OSError, RuntimeError) as error:  # HDF5's word for a disk that is full when it closes a file
            raise DataError(
                f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}"
            ) from error
    return {
        "path": str(path),
        "images": len(wanted),
        "added": added,
        "mended": damaged,
        "replaced": replaced,
        "bytes": path.stat().st_size,
    }


def _state(pack: ImagePack, loose: bytes | None, name: str) -> str:
    """How an image of a pack stands beside its loose file, if there is one that can be read."""
    try:
        pack.read(name)
    except DataError:
        return DAMAGED
    is_other = loose is not None and digest_of(loose) != pack.size_and_digest(name)[1]
    return REPLACED if is_other else CURRENT


def _loose(root: Path, name: str, folders: Sequence[str]) -> bytes | None:
    try:
        return loose_bytes(root, name, folders)
    except DataError:
        return None


def _build(path: Path, names: Sequence[str], bytes_of: Callable[[str], bytes], quiet: bool) -> None:
    flat, index = path.with_name(f".{path.name}.flat"), path.with_name(f".{path.name}.index")
    rows = _resumable(flat, index, names, bytes_of)
    with flat.open("ab") as data_file, index.open("a", encoding="utf-8") as index_file:
        for name in progress(
            names[len(rows) :], len(names), "packing", quiet, unit="image", initial=len(rows)
        ):
            data = bytes_of(name)
            data_file.write(data)
            data_file.flush()
            row = [name, len(data), digest_of(data).hex(), *_size_hw(name, data)]
            index_file.write(json.dumps(row) + "\n")
            index_file.flush()
            rows.append(row)
    import h5py

    with publishing(path) as partial, h5py.File(partial, "w") as file:
        file.attrs["format"] = PACK_FORMAT
        offset_N = np.cumsum([0, *(row[1] for row in rows)], dtype=np.int64)
        out = file.create_dataset("data", shape=(int(offset_N[-1]),), dtype=np.uint8)
        start = 0
        for block in _blocks(flat):
            out[start : start + len(block)] = np.frombuffer(block, np.uint8)
            start += len(block)
        file["offset"] = offset_N
        file["name"] = np.frombuffer(json.dumps(list(names)).encode(), np.uint8)
        digests = b"".join(bytes.fromhex(row[2]) for row in rows)
        file["digest"] = np.frombuffer(digests, np.uint8).reshape(-1, IMAGE_HASH_BYTES)
        file["size_hw"] = np.array([row[3:] for row in rows], np.int32).reshape(-1, 2)
    flat.unlink()
    index.unlink()


def _resumable(
    flat: Path, index: Path, names: Sequence[str], bytes_of: Callable[[str], bytes]
) -> list[list[Any]]:
    """Rows of an earlier build whose bytes are there and are still those of the images; both files are cut to them."""
    rows: list[list[Any]] = []
    total, end = 0, 0
    if flat.is_file() and index.is_file():
        with flat.open("rb") as written:
            for line, name in zip(index.read_bytes().splitlines(keepends=True), names, strict=False):
                row = _row(line)
                if row is None or row[0] != name or written.read(row[1]) != bytes_of(name):
                    break
                rows.append(row)
                total, end = total + row[1], end + len(line)
    for path, length in ((flat, total), (index, end)):
        with path.open("ab") as file:
            file.truncate(length)
    return rows


def _row(line: bytes) -> list[Any] | None:
    """[name, bytes, digest, height, width] of a line of the index; None for what a kill or a power cut left of it."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, list) and len(row) == 5 else None


def _size_hw(name: str, data: bytes) -> tuple[int, int]:
    try:
        return image_size_hw(name, data)
    except DataError:
        return 0, 0


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            yield block
