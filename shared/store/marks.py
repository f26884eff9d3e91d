"""Marks of completeness: `done/<k>.json`, published after every file of shard k.

A mark names the shard, its rows, the store's fingerprint, length and checksum of each field's file, and how
many answers had which status. A shard without an intact mark is not there, whatever files lie around.
"""

from typing import Any

from shared.errors import DataError
from shared.store.layout import StoreHeader
from shared.store.publish import read_file, unseal


def read_mark(header: StoreHeader, shard: int) -> dict[str, Any]:
    """The body of a shard's mark.

    Raises:
        FileNotFoundError: The shard is not finished.
        DataError: The mark is damaged, cannot be read, or belongs to another store or shard.
    """
    file = header.done_path(shard)
    body = unseal(read_file(file), file)
    start, stop = header.shard_bounds(shard)
    names = {spec.name for spec in header.run_fields}
    if (body["shard"], body["rows"], body["fingerprint"]) != (shard, stop - start, header.fingerprint):
        raise DataError(f"{file}: belongs to another shard or store (fingerprint {body['fingerprint']})")
    if set(body["files"]) != names:
        raise DataError(f"{file}: lists fields {sorted(body['files'])}, the store has {sorted(names)}")
    return body


def shard_is_done(header: StoreHeader, shard: int) -> bool:
    """Whether a shard has an intact mark and files of the lengths the mark names (contents are not read)."""
    try:
        files = read_mark(header, shard)["files"]
        return all(
            header.shard_path(name, shard).stat().st_size == entry["bytes"] for name, entry in files.items()
        )
    except (DataError, OSError):
        return False
