"""A small field of a prior store, kept in memory once it was read. N rows of the store."""

from collections.abc import Sequence

import numpy as np

from shared.errors import DataError
from shared.store.layout import REPAIR_HINT, StoreHeader
from shared.store.publish import file_entry, read_file
from shared.store.recorded_files import RecordedFiles
from shared.store.schema import FieldSpec
from shared.store.shardfile import decode_chunk, parse_index


class Column:
    """A small field in memory, filled shard by shard: `values` [N, *row_shape], unread shards never shown."""

    def __init__(self, header: StoreHeader, files: RecordedFiles, spec: FieldSpec) -> None:
        """An empty column; nothing is read yet."""
        self._header, self._files, self._spec = header, files, spec
        self.shard_rows = header.shard_rows(spec.name)
        self.num_shards = -(-header.num_rows // self.shard_rows)
        self.values = np.zeros((header.num_rows, *spec.row_shape), spec.numpy_dtype)
        self._loaded = np.zeros(self.num_shards, bool)
        self.whole = False

    def load(self, shards: Sequence[int] | range) -> None:
        """Read the shards that were not read yet.

        Raises:
            DataError: An unfinished shard, or a missing or damaged file.
        """
        if self.whole:
            return
        for shard in shards:
            if not self._loaded[shard]:
                self._read(shard)
                self._loaded[shard] = True
        self.whole = bool(self._loaded.all())

    def _read(self, shard: int) -> None:
        file, entry = self._files.entry(self._spec.name, shard)
        try:
            raw = read_file(file)
        except FileNotFoundError:
            raise DataError(f"{file}: missing, though its shard is marked; {REPAIR_HINT}") from None
        if file_entry(raw) != entry:
            raise DataError(f"{file}: damaged (length or checksum); {REPAIR_HINT}")
        data = np.frombuffer(raw, np.uint8)
        step = self._header.rows_per_chunk(self._spec.name)
        index = parse_index(data, self.shard_rows // step, str(file))
        stop = min((shard + 1) * self.shard_rows, self._header.num_rows)
        for number, first in enumerate(range(shard * self.shard_rows, stop, step)):
            begin, length = (int(value) for value in index[number])
            chunk = decode_chunk(data[begin : begin + length], self._spec, step, f"{file}, chunk {number}")
            self.values[first : first + step] = chunk[: min(step, stop - first)]
