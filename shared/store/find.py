"""Find stores under a cache folder by reading their `zarr.json` alone."""

import re
from collections.abc import Iterator
from pathlib import Path

from shared.errors import DataError
from shared.store.layout import StoreHeader, read_header


def store_path(cache_root: str | Path, dataset: str, fingerprint: str) -> Path:
    """Folder of a store: `<cache_root>/<dataset>.<fingerprint>.zarr`."""
    if not re.fullmatch(r"[A-Za-z0-9+_-][A-Za-z0-9+._-]*", dataset):
        raise DataError(f"dataset name {dataset!r} cannot be a folder name")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", fingerprint):
        raise DataError(f"fingerprint {fingerprint!r} cannot be part of a folder name")
    return Path(cache_root) / f"{dataset}.{fingerprint}.zarr"


def find_stores(
    cache_root: str | Path,
    *,
    dataset: str | None = None,
    split_by: str | None = None,
    data_fingerprint: str | None = None,
) -> list[Path]:
    """Prior stores directly under `cache_root`, finished or not, sorted by name.

    Args:
        cache_root: Folder to look in; none there means no stores.
        dataset: Only stores whose `attrs["data"]["dataset"]` is this.
        split_by: Only stores whose `attrs["data"]["split_by"]` is this.
        data_fingerprint: Only stores whose `attrs["data"]["fingerprint"]` is this.

    Returns:
        Paths; folders that are no prior store, and headers that are damaged or cannot be read, are passed over.
    """
    wanted = {"dataset": dataset, "split_by": split_by, "fingerprint": data_fingerprint}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    found = []
    for path, header in _headers(cache_root):
        if isinstance(header, DataError):
            continue
        data = header.attrs.get("data", {})
        if all(data.get(key) == value for key, value in wanted.items()):
            found.append(path)
    return found


def unusable_stores(cache_root: str | Path) -> list[str]:
    """Why `find_stores` passes over folders that are named as stores are (`*.zarr`), a line each."""
    return [
        str(header)
        for path, header in _headers(cache_root)
        if isinstance(header, DataError) and path.suffix == ".zarr"
    ]


def _headers(cache_root: str | Path) -> Iterator[tuple[Path, StoreHeader | DataError]]:
    """Folders directly under `cache_root` that hold a `zarr.json`, by name, and what it says or why it says nothing."""
    for file in sorted(Path(cache_root).glob("*/zarr.json")):
        if file.parent.name.endswith(".partial"):
            continue
        try:
            yield file.parent, read_header(file.parent)
        except DataError as error:
            yield file.parent, error
