"""Read a prior store: single rows and batches at near memory-map speed, and never a row that nobody wrote.

The standard Zarr shard files are read directly: large fields row by row out of mapped files (`mapped_rows`), small ones
whole into memory (`column`). A shard without its mark is refused. Axes: B rows of a batch, N rows of the store.

A reader is picklable (by path) and opens its files lazily in each process, after a fork too; it holds no
threads.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.store.column import Column
from shared.store.layout import RUN_HINT, read_header
from shared.store.mapped_rows import MappedRows
from shared.store.recorded_files import RecordedFiles
from shared.store.schema import FieldSpec, decode_text_rows


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
        self._files = RecordedFiles(self._header)
        self._columns: dict[str, Column] = {}
        self._mapped = MappedRows(self._header, self._files)
        self._row_by_id: dict[str, int] | None = None
        self._sample_ids: list[str] | None = None

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
            for name, count in self._files.mark(shard)["status"].items():
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
            return self._mapped.gather(spec, picked)
        column = self._column(name)
        if not column.whole:
            column.load(np.unique(rows_B // column.shard_rows).tolist())
        return column.values[rows_B]

    def _spec(self, name: str) -> FieldSpec:
        if name not in self.fields:
            raise DataError(f"{self.path}: no field {name!r} (it has {', '.join(self.fields)})")
        return self.fields[name]

    def _column(self, name: str) -> Column:
        if name not in self._columns:
            self._columns[name] = Column(self._header, self._files, self.fields[name])
        return self._columns[name]
