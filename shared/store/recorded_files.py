"""What marks and manifest of a store recorded: length and checksum of each file, and which shards are finished."""

import json
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.store.layout import REPAIR_HINT, RUN_HINT, StoreHeader
from shared.store.marks import read_mark
from shared.store.publish import file_entry, read_file, unseal


class RecordedFiles:
    """The shard files of a store; a mark is read once, when a file of its shard is first asked for."""

    def __init__(self, header: StoreHeader) -> None:
        """Read the manifest and compare the header with it.

        Raises:
            DataError: A damaged manifest, or a header that is not the recorded one.
        """
        self._header = header
        self._static = _checked_manifest(header.path)
        self._marks: dict[int, dict[str, Any]] = {}

    def mark(self, shard: int) -> dict[str, Any]:
        """The mark of a finished shard.

        Raises:
            DataError: The shard is not finished, or its mark is damaged.
        """
        if shard not in self._marks:
            try:
                self._marks[shard] = read_mark(self._header, shard)
            except FileNotFoundError:
                start, stop = self._header.shard_bounds(shard)
                raise DataError(
                    f"{self._header.path}: shard {shard} (rows {start} to {stop - 1}) is not finished; {RUN_HINT}"
                ) from None
            except DataError as error:
                raise DataError(f"{error}; {REPAIR_HINT}") from None
        return self._marks[shard]

    def entry(self, name: str, number: int) -> tuple[Path, dict[str, Any]]:
        """A shard file and its recorded length and checksum; the shard must be finished."""
        file = self._header.shard_path(name, number)
        if name not in self._header.static_fields:
            return file, self.mark(number)["files"][name]
        return file, self._static[str(file.relative_to(self._header.path))]


def _checked_manifest(path: Path) -> dict[str, Any]:
    """The table of static files, after the header was compared with it."""
    file = path / "manifest.json"
    try:
        table = unseal(read_file(file), file)["files"]
        data = read_file(path / "zarr.json")
        json.loads(data)
    except FileNotFoundError:
        raise DataError(f"{file}: missing; {REPAIR_HINT}") from None
    except DataError as error:
        raise DataError(f"{error}; {REPAIR_HINT}") from None
    if file_entry(data) != table["zarr.json"]:
        raise DataError(f"{path / 'zarr.json'}: damaged (checksum); {REPAIR_HINT}")
    return table
