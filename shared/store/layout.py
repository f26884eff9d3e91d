"""Where the parts of a store lie, and its Zarr v3 metadata.

    <store>/zarr.json            group: attributes and the metadata of every array (consolidated)
    <store>/<field>/zarr.json    the same metadata, per array
    <store>/<field>/c.<k>.0.0    shard k of a field (static fields have one shard, number 0, for all rows)
    <store>/manifest.json        length and checksum of every file written at creation (sealed)
    <store>/spare/...            a second copy of everything above but the shards a run writes
    <store>/done/<k>.json        written last: shard k is whole; rows, lengths, checksums, status counts
    (sealed)
    <store>/attempts/<k>.json    shard k was begun and not finished; no part of the store (sealed)

A shard without its `done` file does not exist, whatever files there are: in Zarr a missing chunk reads as
zeros.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.store.publish import read_file
from shared.store.schema import SCHEMA_VERSION, SHARD_ROWS, STORE_KIND, FieldSpec
from shared.store.shardfile import chunk_rows

SPARE = "spare"
RUN_HINT = "run `l2l priors run` again with the same settings to finish it"
REPAIR_HINT = "run `l2l priors verify --repair` on the store, then `l2l priors run`"


@dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """What `zarr.json` says about a store."""

    path: Path
    """The store's folder."""
    attrs: dict[str, Any]
    """All attributes of the group."""
    num_rows: int
    """N, samples in the store."""
    fields: dict[str, FieldSpec]
    """Fields by name, in order."""
    static_fields: tuple[str, ...]
    """Fields that were written whole at creation."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything the content depends on."""
        return self.attrs["fingerprint"]

    @property
    def num_shards(self) -> int:
        """Shards of the fields that a run writes."""
        return -(-self.num_rows // SHARD_ROWS)

    @property
    def run_fields(self) -> tuple[FieldSpec, ...]:
        """Fields that `write_shard` writes."""
        return tuple(spec for spec in self.fields.values() if spec.name not in self.static_fields)

    def shard_bounds(self, shard: int) -> tuple[int, int]:
        """First row of a shard and the row after its last."""
        if not 0 <= shard < self.num_shards:
            raise DataError(f"{self.path}: shard {shard} is outside 0..{self.num_shards - 1}")
        return shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, self.num_rows)

    def shard_rows(self, name: str) -> int:
        """Rows of a full shard of a field: `SHARD_ROWS`, or all of them (rounded up) for a static field."""
        return self.num_shards * SHARD_ROWS if name in self.static_fields else SHARD_ROWS

    def rows_per_chunk(self, name: str) -> int:
        """Rows of an inner chunk of a field."""
        return chunk_rows(self.fields[name], SHARD_ROWS)

    def shard_path(self, name: str, shard: int) -> Path:
        """File of one shard of a field."""
        dims = "".join(".0" for _ in self.fields[name].row_shape)
        return self.path / name / f"c.{shard}{dims}"

    def done_path(self, shard: int) -> Path:
        """The completeness mark of a shard."""
        return self.path / "done" / f"{shard}.json"

    def attempt_path(self, shard: int) -> Path:
        """The note that a shard was begun."""
        return self.path / "attempts" / f"{shard}.json"


def make_header(
    path: Path, num_rows: int, fields: tuple[FieldSpec, ...], attrs: dict[str, Any], static: tuple[str, ...]
) -> StoreHeader:
    """The header of a store that is to be created; `attrs` must hold a fingerprint."""
    names = [spec.name for spec in fields]
    unknown = sorted(set(static) - set(names))
    if num_rows < 1:
        raise DataError(f"{path}: a store needs at least one row, got {num_rows}")
    if len(set(names)) != len(names):
        raise DataError(f"{path}: a field name is used twice in {names}")
    if unknown:
        raise DataError(f"{path}: static arrays {unknown} are not fields of the store")
    if not isinstance(attrs.get("fingerprint"), str) or not attrs["fingerprint"]:
        raise DataError(f"{path}: attrs hold no fingerprint")
    own = {
        "kind": STORE_KIND,
        "schema_version": SCHEMA_VERSION,
        "num_rows": num_rows,
        "shard_rows": SHARD_ROWS,
        "fields": [spec.to_dict() for spec in fields],
        "static_fields": [name for name in names if name in static],
    }
    for key in ("kind", "schema_version"):
        if attrs.get(key, own[key]) != own[key]:
            raise DataError(f"{path}: attrs[{key!r}] is {attrs[key]!r}, this code writes {own[key]!r}")
    return _header(path, json.loads(json.dumps({**attrs, **own}, allow_nan=False)))


def read_header(path: str | Path) -> StoreHeader:
    """Read a store's `zarr.json`.

    Raises:
        DataError: No store there, one that cannot be read, another kind of Zarr group, or another version of the
            schema.
    """
    path = Path(path)
    file = path / "zarr.json"
    try:
        data = read_file(file)
    except FileNotFoundError:
        raise DataError(f"{path}: no prior store here (no zarr.json)") from None
    try:
        attrs = json.loads(data)["attributes"]
        kind, version = attrs.get("kind"), attrs.get("schema_version")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: damaged, not the metadata of a Zarr group ({error}); {REPAIR_HINT}"
        ) from None
    if kind != STORE_KIND:
        raise DataError(f"{path}: kind is {kind!r}, not a prior store ({STORE_KIND!r})")
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema version {version!r}, this code reads {SCHEMA_VERSION}")
    return _header(path, attrs)


def _header(path: Path, attrs: dict[str, Any]) -> StoreHeader:
    try:
        specs = [FieldSpec.from_dict(values) for values in attrs["fields"]]
        header = StoreHeader(
            path=path,
            attrs=attrs,
            num_rows=int(attrs["num_rows"]),
            fields={spec.name: spec for spec in specs},
            static_fields=tuple(attrs["static_fields"]),
        )
        usable = (
            attrs["shard_rows"] == SHARD_ROWS and isinstance(header.fingerprint, str) and header.num_rows > 0
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path / 'zarr.json'}: damaged or foreign attributes ({error}); {REPAIR_HINT}"
        ) from None
    if not usable:
        raise DataError(f"{path / 'zarr.json'}: damaged or foreign attributes; {REPAIR_HINT}")
    return header


def array_metadata(header: StoreHeader, name: str) -> dict[str, Any]:
    """The `zarr.json` of one field."""
    spec = header.fields[name]
    bytes_codec: dict[str, Any] = {"name": "bytes"}
    if spec.numpy_dtype.itemsize > 1:
        bytes_codec["configuration"] = {"endian": "little"}
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    sharding = {
        "chunk_shape": [header.rows_per_chunk(name), *spec.row_shape],
        "codecs": [bytes_codec, *([zstd] if spec.compress else []), {"name": "crc32c"}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    grid = {"chunk_shape": [header.shard_rows(name), *spec.row_shape]}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [header.num_rows, *spec.row_shape],
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": grid},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if spec.dtype.startswith("float") else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["row", *(f"{name}_{axis}" for axis in range(1, 1 + len(spec.row_shape)))],
        "attributes": {},
        "storage_transformers": [],
    }


def group_metadata(header: StoreHeader) -> dict[str, Any]:
    """The `zarr.json` of the group; readers find every array in it and never list the folder."""
    arrays = {name: array_metadata(header, name) for name in header.fields}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": header.attrs,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }
