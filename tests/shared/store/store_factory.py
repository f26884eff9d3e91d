"""Make small prior stores for tests; shard k's content depends on k alone.

1,200 rows: two whole shards and one of 176 rows. Proposal grid 8.
"""

from pathlib import Path
from typing import Any

import numpy as np

from shared.seeding import rng
from shared.store.schema import SHARD_ROWS, STATIC_PRIOR_FIELDS, encode_text_rows, prior_fields
from shared.store.writer import create_store, write_shard

NUM_ROWS = 1200
NUM_SHARDS = 3
GRID = 8
FIELDS = prior_fields(GRID)
RUN_FIELDS = tuple(spec for spec in FIELDS if spec.name not in STATIC_PRIOR_FIELDS)
ATTRS: dict[str, Any] = {
    "fingerprint": "0123456789abcdef",
    "fingerprint_fields": {"model": "tiny", "prompt": "where is {expression}?"},
    "data": {"dataset": "shapes", "split_by": "unc", "fingerprint": "d0"},
    "splits": ["train", "val"],
    "grid": GRID,
}
MINI_FIELDS = tuple(spec for spec in FIELDS if spec.name in ("sample_id", "raw_text", "status", "proposal"))
EXPRESSIONS = ("the red disc", "größte Kugel links", "左の赤い円", "")


def sample_ids(num_rows: int = NUM_ROWS) -> list[str]:
    """Ids in an order that is not sorted."""
    return [f"shapes.unc.{(row * 7919) % num_rows}" for row in range(num_rows)]


def static_arrays() -> dict[str, np.ndarray]:
    """The fields known at plan time."""
    rows = np.arange(NUM_ROWS)
    return {
        "sample_id": encode_text_rows(sample_ids(), 96, strict=True),
        "expression": encode_text_rows([EXPRESSIONS[row % 4] for row in rows], 256),
        "image_id": 10**12 + rows.astype(np.int64),
        "split": (rows % 2).astype(np.uint8),
        "image_hw": np.stack([rows + 1, rows + 2], 1).astype(np.int32),
    }


def shard_arrays(
    shard: int, num_rows: int = NUM_ROWS, fields: tuple = RUN_FIELDS, salt: str = ""
) -> dict[str, np.ndarray]:
    """The fields of one shard; `salt` makes a writer that does not agree with the others."""
    count = min(SHARD_ROWS, NUM_ROWS - shard * SHARD_ROWS)
    arrays = {}
    for spec in RUN_FIELDS:
        generator = rng("store test", salt, shard, spec.name)
        if spec.name == "raw_text":
            texts = [f"<box>{number}</box>" for number in generator.integers(0, 10**6, count)]
            arrays[spec.name] = encode_text_rows(texts, spec.row_shape[0])
        elif spec.name == "status":
            arrays[spec.name] = generator.integers(1, 5, count).astype(np.uint8)
        elif spec.dtype.startswith("float"):
            values = generator.normal(size=(count, *spec.row_shape)).astype(spec.dtype)
            values[::3] = np.nan
            arrays[spec.name] = values
        else:
            high = np.iinfo(spec.dtype).max
            arrays[spec.name] = generator.integers(0, high, (count, *spec.row_shape)).astype(spec.dtype)
    return arrays


def mini_shard(shard: int) -> dict[str, np.ndarray]:
    """The fields of one shard of a store of `MINI_FIELDS`."""
    names = {spec.name for spec in MINI_FIELDS} - set(STATIC_PRIOR_FIELDS)
    return {name: array for name, array in shard_arrays(shard).items() if name in names}


def expected(name: str) -> np.ndarray:
    """A whole field."""
    static = static_arrays()
    if name in static:
        return static[name]
    return np.concatenate([shard_arrays(shard)[name] for shard in range(NUM_SHARDS)])


def create(path: Path, fields: tuple = FIELDS) -> Path:
    """An unfinished store."""
    names = {spec.name for spec in fields}
    static = {name: array for name, array in static_arrays().items() if name in names}
    create_store(path, num_rows=NUM_ROWS, fields=fields, attrs=ATTRS, static=static)
    return path


def fill(path: Path, shards: range = range(NUM_SHARDS)) -> Path:
    """Write shards."""
    for shard in shards:
        write_shard(path, shard, shard_arrays(shard), {"worker": 0})
    return path


class RowsDataset:
    """A map-style data set over a store, with batched access."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, row):
        return self.store.batch("proposal", [row])[0]

    def __getitems__(self, rows):
        return list(
            zip(rows, self.store.batch("proposal", rows), self.store.batch("num_tokens", rows), strict=True)
        )
