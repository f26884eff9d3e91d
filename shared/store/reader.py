"""Read a prior store: single rows and batches at near memory-map speed, and never a row that nobody wrote.

The standard Zarr shard files are mapped into memory and read directly. A chunk's checksum is verified the
first time a process touches it; a shard without its mark is refused. Before rows are copied, the kernel is
asked for the chunks that are probably not in memory (never touched, or page faults went to the disk lately),
which makes cold random reads parallel. Axes: B rows of a batch, N rows of the store.

A reader is picklable (by path) and opens its files lazily in each process, after a fork too; it holds no
threads.
"""

import json
import mmap
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.store.layout import REPAIR_HINT, RUN_HINT, StoreHeader, read_header
from shared.store.marks import read_mark
from shared.store.publish import file_entry, read_file, unseal
from shared.store.schema import FieldSpec, decode_text_rows
from shared.store.shardfile import CRC_BYTES, MISSING, decode_chunk, parse_index

_WAIT_SECONDS = 50e-6
"""A batch that took longer for each row may have waited for the disk; then page faults are looked at."""
_COLD_BATCHES = 16
"""Batches for which every chunk is announced to the kernel after a batch that had to wait for the disk."""


class PriorStore:
    """A prior store, for reading.

    Attributes:
        path: The store's folder.
        attrs: Attributes of the group (`fingerprint`, `fingerprint_fields`, `data`, `splits`, `grid`, ...).
        num_rows: N.
        fields: `FieldSpec` by name.
        fingerprint: Fingerprint of the content.
    """

    def __init__(self, path: str | Path, expected_fingerprint: str | None = None) -> None:
        """Open the header; array files are opened when they are read.

        Args:
            path: The store.
            expected_fingerprint: Refuse any other store.

        Raises:
            DataError: No store, a damaged header, or another fingerprint.
        """
        self.path = Path(path)
        self._expected = expected_fingerprint
        self._header = read_header(path)
        self.attrs: dict[str, Any] = self._header.attrs
        self.num_rows = self._header.num_rows
        self.fields: dict[str, FieldSpec] = self._header.fields
        self.fingerprint = self._header.fingerprint
        if expected_fingerprint is not None and self.fingerprint != expected_fingerprint:
            raise DataError(
                f"{path}: fingerprint {self.fingerprint}, expected {expected_fingerprint}: not the same run"
            )
        self._static = _checked_manifest(self.path)
        self._marks: dict[int, dict[str, Any]] = {}
        self._columns: dict[str, _Column] = {}
        self._shards: dict[str, dict[int, _RowShard]] = {}
        self._checked: dict[tuple[str, int], bytearray] = {}
        self._num_open, self._max_open = 0, 0
        self._row_by_id: dict[str, int] | None = None
        self._sample_ids: list[str] | None = None
        self._cold, self._faults = 0, 0

    def __getstate__(self) -> dict[str, Any]:
        """Only what is needed to open the store again."""
        return {"path": self.path, "expected": self._expected}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the store in this process."""
        self.__init__(state["path"], state["expected"])  # type: ignore[misc]

    def __len__(self) -> int:
        """N."""
        return self.num_rows

    @property
    def limit(self) -> int | None:
        """Number of rows, where they are the first of the splits alone; None: the splits are covered."""
        return self.attrs.get("limit")

    @property
    def done_shards(self) -> list[int]:
        """Shards that are marked complete now, in order (the folder is listed each time)."""
        names = [file.stem for file in (self.path / "done").glob("*.json")]
        return sorted(
            shard for shard in map(int, filter(str.isdecimal, names)) if shard < self._header.num_shards
        )

    @property
    def is_complete(self) -> bool:
        """Whether every shard is marked complete."""
        return len(self.done_shards) == self._header.num_shards

    def require_complete(self) -> None:
        """Refuse a store with unfinished shards, naming how many and what to run."""
        missing = self._header.num_shards - len(self.done_shards)
        if missing:
            raise DataError(
                f"{self.path}: {missing} of {self._header.num_shards} shards are not finished; {RUN_HINT}"
            )

    def status_counts(self) -> dict[str, int]:
        """Answers by status name, over the finished shards."""
        counts: dict[str, int] = {}
        for shard in self.done_shards:
            for name, count in self._mark(shard)["status"].items():
                counts[name] = counts.get(name, 0) + count
        return dict(sorted(counts.items()))

    @property
    def sample_ids(self) -> list[str]:
        """`sample_id` of every row, in row order."""
        if self._sample_ids is None:
            self._sample_ids = decode_text_rows(self.column("sample_id"))
        return self._sample_ids

    def row_of(self, sample_id: str) -> int:
        """The row of a sample."""
        return int(self.rows_of([sample_id])[0])

    def rows_of(self, sample_ids: Sequence[str]) -> np.ndarray:
        """Rows of samples: i64 [len(sample_ids)].

        Raises:
            DataError: A sample that is not in the store, named.
        """
        if self._row_by_id is None:
            self._row_by_id = {sample_id: row for row, sample_id in enumerate(self.sample_ids)}
        try:
            return np.array([self._row_by_id[sample_id] for sample_id in sample_ids], np.int64)
        except KeyError as error:
            raise DataError(
                f"{self.path}: no row for sample {error.args[0]!r}; it holds {self._what_it_holds()}"
            ) from None

    def _what_it_holds(self) -> str:
        """Data set, splits and number of rows, for a person."""
        data, splits = self.attrs.get("data", {}), ", ".join(self.attrs.get("splits", ()))
        of = f"{data['dataset']} ({data['split_by']})" if {"dataset", "split_by"} <= data.keys() else "data"
        pairs = f"{self.num_rows} pairs" if self.limit is None else f"the first {self.limit} pairs alone"
        return f"{pairs} of {of}, splits {splits or 'unnamed'}"

    def column(self, name: str) -> np.ndarray:
        """A whole field, [N, *row_shape], read-only for small fields; every shard must be finished."""
        spec = self._spec(name)
        if spec.chunk == "row":
            return self.batch(name, np.arange(self.num_rows))
        column = self._column(name)
        column.load(range(column.num_shards))
        view = column.values.view()
        view.flags.writeable = False
        return view

    def texts(self, name: str, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Rows of a text field, decoded."""
        return decode_text_rows(self.batch(name, rows))

    def batch(self, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Some rows of a field.

        Args:
            name: The field.
            rows: [B] row numbers, in any order, repeats allowed.

        Returns:
            [B, *row_shape] of the field's dtype, the caller's own.

        Raises:
            DataError: A row outside the store, an unfinished shard, or damaged data; store, shard and remedy
                are named.
        """
        spec = self._spec(name)
        rows_B = np.asarray(rows, np.int64).reshape(-1)
        picked: list[int] = rows_B.tolist()
        if picked and (min(picked) < 0 or max(picked) >= self.num_rows):
            raise DataError(
                f"{self.path}: rows {min(picked)}..{max(picked)} leave the store's 0..{self.num_rows - 1}"
            )
        if spec.chunk == "row":
            return self._gather(spec, picked)
        column = self._column(name)
        if not column.whole:
            column.load(np.unique(rows_B // column.shard_rows).tolist())
        return column.values[rows_B]

    def _spec(self, name: str) -> FieldSpec:
        if name not in self.fields:
            raise DataError(f"{self.path}: no field {name!r} (it has {', '.join(self.fields)})")
        return self.fields[name]

    def _column(self, name: str) -> "_Column":
        if name not in self._columns:
            self._columns[name] = _Column(self, self.fields[name])
        return self._columns[name]

    def _gather(self, spec: FieldSpec, rows: list[int]) -> np.ndarray:
        """Rows of a field whose inner chunk is a row, copied into one buffer.

        Chunks that may lie on the disk are announced to the kernel together, and copied after the others.
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

    def _open(self, spec: FieldSpec, number: int) -> "_RowShard":
        """Map a shard's file; where that would be too many, the one of the same field that was mapped first is let go.

        A field whose first file would be one too many takes the place of one of another field.
        """
        opened = self._shards[spec.name]
        self._max_open = self._max_open or _files_allowed(self._num_files())
        if self._num_open >= self._max_open:
            crowded = opened or max(self._shards.values(), key=len)
            crowded.pop(next(iter(crowded)))
            self._num_open -= 1
        checked = self._checked.get((spec.name, number))
        opened[number] = shard = _RowShard(self, spec, number, checked)
        self._checked[spec.name, number] = shard.checked
        self._num_open += 1
        return shard

    def _num_files(self) -> int:
        """Files that would be mapped if every row of every field were read."""
        by_row = (spec.name for spec in self.fields.values() if spec.chunk == "row")
        return sum(-(-self.num_rows // self._header.shard_rows(name)) for name in by_row)

    def _mark(self, shard: int) -> dict[str, Any]:
        """The mark of a finished shard."""
        if shard not in self._marks:
            try:
                self._marks[shard] = read_mark(self._header, shard)
            except FileNotFoundError:
                start, stop = self._header.shard_bounds(shard)
                raise DataError(
                    f"{self.path}: shard {shard} (rows {start} to {stop - 1}) is not finished; {RUN_HINT}"
                ) from None
            except DataError as error:
                raise DataError(f"{error}; {REPAIR_HINT}") from None
        return self._marks[shard]

    def _file_entry(self, name: str, number: int) -> tuple[Path, dict[str, Any]]:
        """A shard file and its recorded length and checksum; the shard must be finished."""
        file = self._header.shard_path(name, number)
        if name not in self._header.static_fields:
            return file, self._mark(number)["files"][name]
        return file, self._static[str(file.relative_to(self.path))]


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


class _Column:
    """A small field in memory, filled shard by shard: `values` [N, *row_shape], unread shards never shown."""

    def __init__(self, store: PriorStore, spec: FieldSpec) -> None:
        self._store, self._spec = store, spec
        header: StoreHeader = store._header
        self.shard_rows = header.shard_rows(spec.name)
        self.num_shards = -(-store.num_rows // self.shard_rows)
        self.values = np.zeros((store.num_rows, *spec.row_shape), spec.numpy_dtype)
        self._loaded = np.zeros(self.num_shards, bool)
        self.whole = False

    def load(self, shards: Sequence[int] | range) -> None:
        """Read the shards that were not read yet."""
        if self.whole:
            return
        for shard in shards:
            if not self._loaded[shard]:
                self._read(shard)
                self._loaded[shard] = True
        self.whole = bool(self._loaded.all())

    def _read(self, shard: int) -> None:
        file, entry = self._store._file_entry(self._spec.name, shard)
        try:
            raw = read_file(file)
        except FileNotFoundError:
            raise DataError(f"{file}: missing, though its shard is marked; {REPAIR_HINT}") from None
        if file_entry(raw) != entry:
            raise DataError(f"{file}: damaged (length or checksum); {REPAIR_HINT}")
        data = np.frombuffer(raw, np.uint8)
        step = self._store._header.rows_per_chunk(self._spec.name)
        index = parse_index(data, self.shard_rows // step, str(file))
        stop = min((shard + 1) * self.shard_rows, self._store.num_rows)
        for number, first in enumerate(range(shard * self.shard_rows, stop, step)):
            begin, length = (int(value) for value in index[number])
            chunk = decode_chunk(data[begin : begin + length], self._spec, step, f"{file}, chunk {number}")
            self.values[first : first + step] = chunk[: min(step, stop - first)]


class _RowShard:
    """One mapped shard file whose inner chunks are rows.

    Attributes:
        view: The file's bytes.
        begin: Offset of each row's chunk.
        checked: One byte per row: whether it may be read from `view` as it is, that is, it is stored uncompressed and
            its checksum was verified by this process.
    """

    def __init__(
        self, store: PriorStore, spec: FieldSpec, number: int, checked: bytearray | None = None
    ) -> None:
        """Map the file; `checked` is that of an earlier map of the same file."""
        self._file, entry = store._file_entry(spec.name, number)
        self._spec, self._number = spec, number
        rows_of_shard = store._header.shard_rows(spec.name)
        num_rows = min(rows_of_shard, store.num_rows - number * rows_of_shard)
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
