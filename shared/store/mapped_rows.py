"""Single rows of a store's large fields, copied out of mapped shard files.

A chunk's checksum is verified the first time a process touches it. Before rows are copied, the kernel is asked for the
chunks that are probably not in memory (never touched, or page faults went to the disk lately), which makes cold random
reads parallel.
"""

import mmap
import resource
import time
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.store.layout import REPAIR_HINT, StoreHeader
from shared.store.recorded_files import RecordedFiles
from shared.store.schema import FieldSpec
from shared.store.shardfile import CRC_BYTES, MISSING, decode_chunk, parse_index

_WAIT_SECONDS = 50e-6
"""A batch that took longer for each row may have waited for the disk; then page faults are looked at."""
_COLD_BATCHES = 16
"""Batches for which every chunk is announced to the kernel after a batch that had to wait for the disk."""


class _MappedShard:
    """One mapped shard file whose inner chunks are rows.

    Attributes:
        view: The file's bytes.
        begin: Offset of each row's chunk.
        checked: One byte per row: whether it may be read from `view` as it is, that is, it is stored uncompressed and
            its checksum was verified by this process.
    """

    def __init__(
        self,
        header: StoreHeader,
        files: RecordedFiles,
        spec: FieldSpec,
        number: int,
        checked: bytearray | None = None,
    ) -> None:
        """Map the file; `checked` is that of an earlier map of the same file."""
        self._file, entry = files.entry(spec.name, number)
        self._spec, self._number = spec, number
        rows_of_shard = header.shard_rows(spec.name)
        num_rows = min(rows_of_shard, header.num_rows - number * rows_of_shard)
        try:
            with open(self._file, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):  # mmap refuses an empty file
            raise DataError(
                f"{self._file}: missing or empty, though its shard is marked; {REPAIR_HINT}"
            ) from None
        except OSError as error:
            raise DataError(f"{self._file}: cannot be read ({error.strerror or error})") from error
        self._bytes = np.frombuffer(self._map, np.uint8)
        if len(self._bytes) != entry["bytes"]:
            raise DataError(
                f"{self._file}: {len(self._bytes)} bytes, {entry['bytes']} were written; {REPAIR_HINT}"
            )
        try:
            index = parse_index(self._bytes, rows_of_shard, str(self._file))[:num_rows]
        except DataError as error:
            raise DataError(f"{error}; {REPAIR_HINT}") from None
        if (index[:, 0] == MISSING).any():
            raise DataError(f"{self._file}: rows are missing, though their shard is marked; {REPAIR_HINT}")
        self.view = memoryview(self._map)
        self.begin: list[int] = index[:, 0].tolist()
        self._length: list[int] = index[:, 1].tolist()
        self._plain = not spec.compress and bool((index[:, 1] == spec.row_bytes + CRC_BYTES).all())
        self.checked = bytearray(num_rows) if checked is None else checked

    def announce(self, local: int) -> None:
        """Ask the kernel to read a row's chunk ahead; returns at once."""
        begin = self.begin[local] // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, begin, self.begin[local] + self._length[local] - begin)

    def row(self, local: int) -> np.ndarray:
        """A row's bytes in memory, its checksum verified if that was not done before: u8 [row_bytes]."""
        begin, end = self.begin[local], self.begin[local] + self._length[local]
        if self.checked[local]:
            return self._bytes[begin : end - CRC_BYTES].copy()  # NumPy lets other threads run while it waits
        try:
            row = decode_chunk(
                self._bytes[begin:end], self._spec, 1, f"{self._file}, row {local} of shard {self._number}"
            )
        except DataError as error:
            raise DataError(f"{error}; {REPAIR_HINT}") from None
        self.checked[local] = self._plain
        return row.reshape(-1).view(np.uint8)


class MappedRows:
    """The fields of a store whose inner chunk is a row; a file is mapped when a row of it is first asked for.

    Attributes:
        num_open: Files that are mapped now.
        max_open: Most that may be; 0 until the first one is.
    """

    def __init__(self, header: StoreHeader, files: RecordedFiles) -> None:
        """Nothing is opened yet."""
        self._header, self._files = header, files
        self._shards: dict[str, dict[int, _MappedShard]] = {}
        self._checked: dict[tuple[str, int], bytearray] = {}
        self.num_open, self.max_open = 0, 0
        self._cold, self._faults = 0, 0

    def gather(self, spec: FieldSpec, rows: list[int]) -> np.ndarray:
        """Rows of a field, copied into one buffer: [len(rows), *row_shape].

        Chunks that may lie on the disk are announced to the kernel together, and copied after the others.

        Args:
            spec: A field whose inner chunk is a row.
            rows: Rows of the store, in any order.

        Raises:
            DataError: An unfinished shard, or a missing or damaged file.
        """
        opened = self._shards.setdefault(spec.name, {})
        rows_of_shard, row_bytes, cold = self._header.shard_rows(spec.name), spec.row_bytes, self._cold > 0
        parts: list[Any] = []  # joined at once, which costs less than an assignment of NumPy for each row
        later = []
        start = time.perf_counter()
        for row in rows:
            number, local = divmod(row, rows_of_shard)
            shard = opened.get(number) or self._open(spec, number)
            if cold or not shard.checked[local]:
                shard.announce(local)
                later.append((len(parts), shard, local))
                parts.append(b"")
            else:
                begin = shard.begin[local]
                parts.append(shard.view[begin : begin + row_bytes])
        for place, shard, local in later:
            parts[place] = shard.row(local)
        out: np.ndarray = np.ndarray((len(rows), *spec.row_shape), spec.numpy_dtype, bytearray().join(parts))
        if cold:
            self._cold -= 1
        if time.perf_counter() - start > _WAIT_SECONDS * len(rows):
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
            if faults > self._faults:  # slow because of the disk, not of other processes
                self._faults, self._cold = faults, _COLD_BATCHES
        return out

    def _open(self, spec: FieldSpec, number: int) -> _MappedShard:
        """Map a shard's file; where that would be too many, the one of the same field that was mapped first is let go.

        A field whose first file would be one too many takes the place of one of another field.
        """
        opened = self._shards[spec.name]
        self.max_open = self.max_open or _files_allowed(self._num_files())
        if self.num_open >= self.max_open:
            crowded = opened or max(self._shards.values(), key=len)
            crowded.pop(next(iter(crowded)))
            self.num_open -= 1
        checked = self._checked.get((spec.name, number))
        opened[number] = shard = _MappedShard(self._header, self._files, spec, number, checked)
        self._checked[spec.name, number] = shard.checked
        self.num_open += 1
        return shard

    def _num_files(self) -> int:
        """Files that would be mapped if every row of every field were read."""
        by_row = (spec.name for spec in self._header.fields.values() if spec.chunk == "row")
        return sum(-(-self._header.num_rows // self._header.shard_rows(name)) for name in by_row)


def _files_allowed(wanted: int) -> int:
    """How many files a reader may hold open, at least 16: half of this process's limit, raised where it may be.

    The usual limit of 1,024 is made for programs that wait for sockets; a map holds its file's number for as long as
    it lives.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted if hard == resource.RLIM_INFINITY else min(2 * wanted, hard)
    if soft != resource.RLIM_INFINITY and needed > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            soft = needed
        except (OSError, ValueError):
            pass
    return max(16, wanted if soft == resource.RLIM_INFINITY else soft // 2)
