"""Write a prior store: everything that is known at plan time at once, the model's fields shard by shard.

One worker writes one shard. Killing it at any moment costs that shard alone: files appear by rename, and the
mark `done/<k>.json` is published last. The content of a shard is meant to be a function of its number alone,
so a second writer of a shard does no harm; if two writers with different bytes ever interleave (a model is
not bit-reproducible), the later one sees it and publishes again, so that a marked shard comes from one
writer.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.store.layout import SPARE, StoreHeader, array_metadata, group_metadata, make_header, read_header
from shared.store.marks import read_mark, shard_is_done
from shared.store.publish import (
    canonical_json,
    clean_partials,
    disk_errors,
    file_entry,
    partial_path,
    publish_file,
    read_file,
    remove_synced,
    seal,
    sync,
    unseal,
    write_synced,
)
from shared.store.reader import PriorStore
from shared.store.schema import FieldSpec
from shared.store.shardfile import encode_shard
from shared.types import STATUS_BY_CODE

_ATTEMPTS = 5


def create_store(
    path: str | Path,
    *,
    num_rows: int,
    fields: tuple[FieldSpec, ...],
    attrs: dict[str, Any],
    static: dict[str, np.ndarray] | None = None,
) -> None:
    """Create a store, whole or not at all.

    Creating a store that is already there, with the same fingerprint, fields and static arrays, changes
    nothing: every worker of a run may call this.

    Args:
        path: The store's folder; its parent is made.
        num_rows: N.
        fields: `schema.prior_fields(grid)` or other fields.
        attrs: JSON-able attributes. `fingerprint` (text) is required; a prior store also carries
            `fingerprint_fields` (what was hashed), `data` (dataset, split_by, fingerprint), `splits` (names
            of the codes in `split`) and `grid`. Kind, schema version, N and the fields are added.
        static: Arrays [N, *row_shape] of the fields known at plan time. `sample_id` must hold no row twice.

    Raises:
        DataError: A wrong array, another store at `path`, or a disk that cannot be written.
    """
    path = Path(path)
    static = static or {}
    header = make_header(path, num_rows, tuple(fields), attrs, tuple(static))
    files = dict(_static_files(header, static))
    if path.exists():
        _require_same(path, header, files, static)
        return
    with disk_errors(path, "a new store"):
        path.parent.mkdir(parents=True, exist_ok=True)
        clean_partials(path.parent)
        partial = partial_path(path)
        try:
            _write_tree(partial, files, list(header.fields))
            (partial / "done").mkdir()
            sync(partial)
            partial.rename(path)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            if not (path / "zarr.json").exists():
                raise
            _require_same(path, header, files, static)  # another worker was first
        sync(path.parent)


def _static_files(header: StoreHeader, static: dict[str, np.ndarray]) -> Iterator[tuple[str, bytes]]:
    """Every file written at creation: path inside the store, and bytes; `manifest.json` last."""
    if "sample_id" in static:
        _check_unique(header, static["sample_id"])
    table = {}
    for name, data in _content_files(header, static):
        table[name] = file_entry(data)
        yield name, data
    yield "manifest.json", seal({"fingerprint": header.fingerprint, "files": table})


def _content_files(header: StoreHeader, static: dict[str, np.ndarray]) -> Iterator[tuple[str, bytes]]:
    yield "zarr.json", canonical_json(group_metadata(header))
    for name, spec in header.fields.items():
        yield f"{name}/zarr.json", canonical_json(array_metadata(header, name))
        if name in static:
            _check_array(header, spec, static[name], header.num_rows, "static")
            data = encode_shard(static[name], spec, header.shard_rows(name), header.rows_per_chunk(name))
            yield str(header.shard_path(name, 0).relative_to(header.path)), data


def _check_unique(header: StoreHeader, rows: np.ndarray) -> None:
    keys: dict[bytes, int] = {}
    for row, key in enumerate(np.ascontiguousarray(rows)):
        first = keys.setdefault(key.tobytes(), row)
        if first != row:
            text = key.tobytes().rstrip(b"\0").decode(errors="replace")
            raise DataError(f"{header.path}: sample_id {text!r} is in row {first} and again in row {row}")


def _check_array(header: StoreHeader, spec: FieldSpec, array: np.ndarray, num_rows: int, where: str) -> None:
    expected = (num_rows, *spec.row_shape)
    if array.dtype != spec.numpy_dtype or array.shape != expected:
        raise DataError(
            f"{header.path}: {where}: field {spec.name} is {array.dtype} {array.shape}, "
            f"expected {spec.dtype} {expected}"
        )


def _require_same(
    path: Path, header: StoreHeader, files: dict[str, bytes], static: dict[str, np.ndarray]
) -> None:
    """Refuse a store at `path` that is not the one `header`, `files` and the rows in them describe."""
    found = read_header(path)
    if found.fingerprint != header.fingerprint:
        raise DataError(
            f"{path}: holds another store, fingerprint {found.fingerprint}, not {header.fingerprint}"
        )
    same = (found.num_rows, found.fields, found.static_fields) == (
        header.num_rows,
        header.fields,
        header.static_fields,
    )
    table = unseal(read_file(path / "manifest.json"), path / "manifest.json")["files"]
    for name, data in files.items():
        if name.endswith("zarr.json") or name == "manifest.json":
            continue  # attributes that are no part of the fingerprint may differ
        field = name.partition("/")[0]
        same = same and (table.get(name) == file_entry(data) or _holds(path, field, static[field]))
    if not same:
        raise DataError(
            f"{path}: has the same fingerprint {header.fingerprint} but other rows, fields or static data"
        )


def _holds(path: Path, field: str, rows: np.ndarray) -> bool:
    """Whether a store has these rows in a field, however zstd packed them: its versions differ in that."""
    return np.array_equal(PriorStore(path).column(field), rows)


def _write_tree(folder: Path, files: dict[str, bytes], folders: list[str]) -> None:
    """Write every file, and a second copy of each under `spare/`."""
    places = [base / name for base in (folder, folder / SPARE) for name in ("", *folders)]
    for place in places:
        place.mkdir()
    for base in (folder, folder / SPARE):
        for name, data in files.items():
            write_synced(base / name, data)
    for place in places:
        sync(place)


def write_shard(
    path: str | Path,
    shard_index: int,
    arrays: dict[str, np.ndarray],
    info: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Publish one shard: every field's file, then its mark. A finished shard is left as it is.

    Args:
        path: The store.
        shard_index: k; its rows are k * 512 up to (k + 1) * 512, fewer in the last shard.
        arrays: [rows, *row_shape] for every field that is not static.
        info: JSON-able notes kept in the mark (who wrote it, with what); never part of the content. If it
            holds a `fingerprint`, that must be the store's.
        overwrite: Replace a finished shard (its mark is removed first).

    Raises:
        DataError: Wrong arrays, another fingerprint, or a disk that cannot be written (nothing half-done is
            visible then, and the call can be repeated).
    """
    header = read_header(path)
    start, stop = header.shard_bounds(shard_index)
    if info.get("fingerprint", header.fingerprint) != header.fingerprint:
        raise DataError(
            f"{path}: shard {shard_index} was made for fingerprint {info['fingerprint']}, not this store"
        )
    if set(arrays) != {spec.name for spec in header.run_fields}:
        names = sorted(spec.name for spec in header.run_fields)
        raise DataError(f"{path}: shard {shard_index}: got fields {sorted(arrays)}, expected {names}")
    for spec in header.run_fields:
        _check_array(header, spec, arrays[spec.name], stop - start, f"shard {shard_index}")
    status = _status_counts(header, shard_index, arrays)
    if not overwrite and shard_is_done(header, shard_index):
        return
    blobs = {
        spec.name: encode_shard(
            arrays[spec.name], spec, header.shard_rows(spec.name), header.rows_per_chunk(spec.name)
        )
        for spec in header.run_fields
    }
    body = {
        "shard": shard_index,
        "rows": stop - start,
        "fingerprint": header.fingerprint,
        "files": {name: file_entry(data) for name, data in blobs.items()},
        "status": status,
        "info": info,
    }
    with disk_errors(header.path, f"shard {shard_index}"):
        remove_synced(header.done_path(shard_index))  # a mark found here is broken, or the caller asked
        _publish(header, shard_index, blobs, seal(body))


def _status_counts(header: StoreHeader, shard: int, arrays: dict[str, np.ndarray]) -> dict[str, int]:
    if "status" not in arrays:
        return {}
    codes, counts = np.unique(arrays["status"], return_counts=True)
    unknown = [int(code) for code in codes if int(code) not in STATUS_BY_CODE]
    if unknown:
        raise DataError(
            f"{header.path}: shard {shard}: status codes {unknown} are not in use (0: a row nobody wrote)"
        )
    return {str(STATUS_BY_CODE[int(code)]): int(count) for code, count in zip(codes, counts, strict=True)}


def _publish(header: StoreHeader, shard: int, blobs: dict[str, bytes], mark: bytes) -> None:
    """Stage every file, then rename them together; the mark last. Yields to a writer that has finished."""
    for _ in range(_ATTEMPTS):
        staged: dict[Path, tuple[Path, int]] = {}
        try:
            for name, data in blobs.items():
                final = header.shard_path(name, shard)
                partial = partial_path(final)
                staged[final] = partial, write_synced(partial, data)
            if shard_is_done(header, shard):
                return
            for final, (partial, _) in staged.items():
                partial.replace(final)
            for name in blobs:
                sync(header.path / name)
            publish_file(header.done_path(shard), mark)
        except FileNotFoundError:
            continue  # somebody cleaned our partial files away: write them again
        finally:
            for partial, _ in staged.values():
                with contextlib.suppress(OSError):
                    partial.unlink()
        if _undisturbed(staged) or _matches(header, shard):
            return
        remove_synced(header.done_path(shard))
    raise DataError(
        f"{header.path}: shard {shard} is being written by somebody else at the same time; run one writer"
    )


def _undisturbed(staged: dict[Path, tuple[Path, int]]) -> bool:
    """Whether the published files are still the ones we staged (same inode numbers)."""
    try:
        return all(final.stat().st_ino == inode for final, (_, inode) in staged.items())
    except FileNotFoundError:
        return False


def _matches(header: StoreHeader, shard: int) -> bool:
    """Whether the mark on disk describes exactly the bytes on disk."""
    try:
        files = read_mark(header, shard)["files"]
        for name, entry in files.items():
            if file_entry(header.shard_path(name, shard).read_bytes()) != entry:
                return False
    except (DataError, FileNotFoundError):
        return False
    return True


def pending_shards(path: str | Path) -> list[int]:
    """Shards that still have to be written, in order; partial files of writers that are gone are removed."""
    header = read_header(path)
    own = (header.done_path(0).parent, header.attempt_path(0).parent)
    for folder in [*own, *(header.path / spec.name for spec in header.run_fields)]:
        clean_partials(folder)
    return [shard for shard in range(header.num_shards) if not shard_is_done(header, shard)]
