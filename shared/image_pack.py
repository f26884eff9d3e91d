"""Images of a data set in one HDF5 file, so that a cluster's file system sees one file and not seventeen thousand.

    ROOT/images.h5           attribute `format`: 2
      data     u8 [bytes]    the image files, one after the other, byte for byte
      offset   i64 [N + 1]   image i is data[offset[i]:offset[i + 1]]
      name     u8 [text]     the N names as a JSON list
      digest   u8 [N, 16]    BLAKE2b of each image file
      size_hw  i32 [N, 2]    height and width of each upright image, pixels; 0 for a file whose head cannot be read

Where the file is there images come from it, and loose files are only looked for if it lacks one. Bytes are those of
the loose files, so a prior store made from either fits both. `shared.image_pack_build` writes it.
"""

import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from shared.errors import DataError
from shared.images import file_exists, find_image, image_size_hw, read_image
from shared.store.schema import IMAGE_HASH_BYTES

PACK_NAME = "images.h5"
"""Name of the file below the data set's root."""
PACK_FORMAT = 2
"""What a pack says of itself; one of another format is refused, and built again by `l2l data pack`."""


def digest_of(data: bytes) -> bytes:
    """BLAKE2b of an image file, `IMAGE_HASH_BYTES` long."""
    return hashlib.blake2b(data, digest_size=IMAGE_HASH_BYTES).digest()


class ImagePack:
    """Reads a pack; opened on first use in each process, and picklable by its path."""

    def __init__(self, path: Path) -> None:
        """Note the path; nothing is opened."""
        self.path = path
        self._process = -1
        self._rows: dict[str, int] = {}
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """The path alone: an open file must not travel to another process."""
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Closed again."""
        self.__init__(state["path"])  # type: ignore[misc]

    def _open(self) -> None:
        if self._process == os.getpid():
            return
        import h5py  # only where there is a pack

        try:
            with h5py.File(self.path, "r") as file:
                if (found := int(file.attrs.get("format", 1))) != PACK_FORMAT:
                    raise ValueError(f"it is of format {found}, and {PACK_FORMAT} is read")
                names = json.loads(file["name"][:].tobytes())
                self._offset_N, self._digest_N16 = file["offset"][:], file["digest"][:]
                self._size_hw_N2 = file["size_hw"][:]
                rows = {len(self._offset_N) - 1, len(self._digest_N16), len(self._size_hw_N2)}
                if rows != {len(names)}:
                    raise ValueError("its parts do not fit together")
                if self._offset_N[-1] != len(file["data"]):
                    raise ValueError("it ends early")
                start = file["data"].id.get_offset()
                if start is None and len(file["data"]):
                    raise ValueError("its images are not one after the other")
            opened = self.path.open("rb", buffering=0)
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{self.path}: not a whole image pack: {error}; build it again") from error
        self._rows = {name: row for row, name in enumerate(names)}
        weakref.finalize(self, opened.close)
        self._start, self._file, self._process = start or 0, opened, os.getpid()

    @property
    def names(self) -> list[str]:
        """Names in the pack, in order."""
        self._open()
        return list(self._rows)

    def __contains__(self, name: str) -> bool:
        """Whether an image is in the pack."""
        self._open()
        return name in self._rows

    def size_and_digest(self, name: str) -> tuple[int, bytes]:
        """Bytes of an image file, and its hash, without reading it."""
        self._open()
        row = self._rows[name]
        return int(self._offset_N[row + 1] - self._offset_N[row]), self._digest_N16[row].tobytes()

    def size_hw(self, name: str) -> tuple[int, int]:
        """Height and width of the upright image without reading it; zeros where its head cannot be read."""
        self._open()
        height, width = self._size_hw_N2[self._rows[name]].tolist()
        return height, width

    def read(self, name: str) -> bytes:
        """An image file's bytes, straight from where HDF5 has put them: its own road takes ten times as long.

        Raises:
            DataError: The pack is damaged there.
        """
        self._open()
        row = self._rows[name]
        first, stop = int(self._offset_N[row]), int(self._offset_N[row + 1])
        data = os.pread(self._file.fileno(), stop - first, self._start + first)
        if digest_of(data) != self._digest_N16[row].tobytes():
            raise DataError(f"{self.path}: image {name} is damaged; build the pack again")
        return data


class ImageStore:
    """Images of a data set by name, out of its pack or loose."""

    def __init__(self, root: Path, folders: Sequence[str]) -> None:
        """Look whether there is a pack below `root`; `folders` as of `shared.images.find_image`.

        Raises:
            DataError: The disk does not say.
        """
        self.root, self.folders = root, tuple(folders)
        path = root / PACK_NAME
        self.pack = ImagePack(path) if file_exists(path) else None

    def path(self, name: str) -> Path:
        """The loose file of an image; raises DataError if there is none."""
        return find_image(self.root, name, self.folders)

    def place(self, name: str) -> str:
        """Where an image is read from, for messages; raises DataError if it is nowhere."""
        return f"{self.pack.path}: {name}" if self.pack and name in self.pack else str(self.path(name))

    def data(self, name: str) -> bytes:
        """The image file's bytes; raises DataError if it is nowhere or cannot be read."""
        if self.pack and name in self.pack:
            return self.pack.read(name)
        return loose_bytes(self.root, name, self.folders)

    def read(self, name: str, at_least_hw: tuple[int, int] | None = None) -> Image.Image:
        """The image, upright and RGB; raises DataError if it is nowhere or cannot be decoded.

        `at_least_hw` as of `shared.images.read_image`.
        """
        if self.pack and name in self.pack:
            return read_image(self.place(name), self.pack.read(name), at_least_hw=at_least_hw)
        return read_image(self.path(name), at_least_hw=at_least_hw)

    def replaced(self, names: Iterable[str]) -> list[str]:
        """Packed images whose loose file has another number of bytes by now, if it is there; no file is opened."""
        if self.pack is None:
            return []
        folders = [self.root / folder for folder in self.folders if (self.root / folder).is_dir()]
        if not folders:
            return []
        sizes = {name: _size_of_first(folders, name) for name in names if name in self.pack}
        return [
            name for name, size in sizes.items() if size not in (None, self.pack.size_and_digest(name)[0])
        ]

    def size_hw(self, name: str) -> tuple[int, int]:
        """Height and width of the upright image, from the pack's list or the file's head; raises as `read`."""
        if self.pack and name in self.pack:
            listed = self.pack.size_hw(name)
            return listed if all(listed) else image_size_hw(self.place(name), self.pack.read(name))
        return image_size_hw(self.path(name))


def _size_of_first(folders: Sequence[Path], name: str) -> int | None:
    """Bytes of an image in the first folder that has it."""
    for folder in folders:
        try:
            return (folder / name).stat().st_size
        except (OSError, ValueError):
            continue
    return None


def loose_bytes(root: Path, name: str, folders: Sequence[str]) -> bytes:
    """The bytes of an image's loose file; raises DataError if there is none, or it cannot be read."""
    found = find_image(root, name, folders)
    try:
        return found.read_bytes()
    except OSError as error:
        raise DataError(f"{found}: cannot be read: {error.strerror or error}") from error
