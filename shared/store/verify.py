"""Look at a store without a reader: what is done, what is damaged, and how to let it be written again."""

from collections import Counter
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.store.layout import SPARE, StoreHeader, read_header
from shared.store.marks import read_mark
from shared.store.publish import digest, disk_errors, publish_file, remove_synced, unseal


def store_status(path: str | Path) -> dict[str, Any]:
    """Counts of a store, from its JSON files alone.

    Returns:
        `path`, `fingerprint`, `fingerprint_fields`, `data`, `num_rows`, `limit` (the same where the store holds the
        first rows of its splits alone, else None), `rows_done`, `num_shards`,
        `done_shards` and `pending_shards` (lists; a damaged mark counts as pending), `complete`,
        `status_counts` (answers by status), `reused` (rows that were taken over, by the store they came from),
        `answers` (rows of which the answer was, and the mask was not),
        `canary` (the check before the run that made the store, and whether it was skipped; None for imported masks).
    """
    header = read_header(path)
    done, rows, counts = [], 0, Counter[str]()
    reused, answers = Counter[str](), Counter[str]()
    for shard in range(header.num_shards):
        try:
            mark = read_mark(header, shard)
        except (DataError, FileNotFoundError):
            continue
        done.append(shard)
        rows += mark["rows"]
        counts.update(mark["status"])
        reused.update(mark["info"].get("reused", {}))
        answers.update(mark["info"].get("answers", {}))
    return {
        "path": str(header.path),
        "fingerprint": header.fingerprint,
        "fingerprint_fields": header.attrs.get("fingerprint_fields", {}),
        "data": header.attrs.get("data", {}),
        "num_rows": header.num_rows,
        "limit": header.attrs.get("limit"),
        "rows_done": rows,
        "num_shards": header.num_shards,
        "done_shards": done,
        "pending_shards": sorted(set(range(header.num_shards)) - set(done)),
        "complete": len(done) == header.num_shards,
        "status_counts": dict(sorted(counts.items())),
        "reused": dict(sorted(reused.items())),
        "answers": dict(sorted(answers.items())),
        "canary": header.attrs.get("canary"),
    }


def verify_store(path: str | Path) -> dict[str, Any]:
    """Read every byte of a store and compare it with the checksums taken when it was written.

    Returns:
        `ok`: nothing is damaged (a store that is not finished can be ok); `bad_shards`: finished shards to be
        written again (see `repair_store`); `problems`: one line each; `static_ok`: whether the files written
        at creation, and their second copies, are intact; `pending_shards`: shards without a mark.

    Raises:
        DataError: There is no store at `path`.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no prior store here")
    static = _static_problems(path)
    problems = list(static.values())
    bad: list[int] = []
    pending: list[int] = []
    if not static.keys() & {"zarr.json", "manifest.json"}:
        header = read_header(path)
        for shard in range(header.num_shards):
            found = _shard_problems(header, shard)
            if found is None:
                pending.append(shard)
            elif found:
                bad.append(shard)
                problems += found
        strays = {file.name for file in (path / "done").glob("*.json")}
        strays -= {f"{shard}.json" for shard in range(header.num_shards)}
        problems += [f"{path / 'done' / name}: not a mark of this store" for name in sorted(strays)]
    else:  # a damaged header cannot be trusted to say which shards and fields there are
        problems.append(
            f"{path}: shards were not checked, as the metadata are damaged: repair, then verify again"
        )
    return {
        "ok": not problems,
        "bad_shards": bad,
        "problems": problems,
        "static_ok": not static,
        "pending_shards": pending,
    }


def repair_store(path: str | Path, bad_shards: list[int]) -> None:
    """Put damaged metadata and static fields back from their second copy, and unmark shards to be written again.

    If the metadata were damaged, shards could not be checked: verify again afterwards.

    Raises:
        DataError: A file is damaged in both copies.
    """
    path = Path(path)
    with disk_errors(path, "a repaired file"):
        _repair_static(path)
        header = read_header(path)
        for shard in bad_shards:
            header.shard_bounds(shard)
            remove_synced(header.done_path(shard))


def _repair_static(path: Path) -> None:
    table, checksum = _manifest_table(path)
    for name in ["manifest.json", *table]:
        pair = [path / name, path / SPARE / name]
        good = [file for file in pair if _static_problem(file, name, table, checksum) is None]
        if not good:
            raise DataError(
                f"{pair[0]}: damaged, and so is its second copy: put the file back from a copy of the store, or "
                "delete the store and run `l2l priors run`"
            )
        data = good[0].read_bytes()
        for file in pair:
            if file not in good:
                file.parent.mkdir(parents=True, exist_ok=True)
                publish_file(file, data)


def _manifest_table(path: Path) -> tuple[dict[str, Any], str | None]:
    """The table of static files from the first intact manifest, and its checksum; empty and None if both are bad."""
    for file in (path / "manifest.json", path / SPARE / "manifest.json"):
        try:
            data = file.read_bytes()
            return unseal(data, file)["files"], digest(data)
        except (OSError, DataError):
            continue
    return {}, None


def _static_problem(file: Path, name: str, table: dict[str, Any], checksum: str | None) -> str | None:
    """What is wrong with one copy of a file written at creation."""
    if name != "manifest.json":
        return _file_problem(file, table[name])
    try:
        data = file.read_bytes()
        unseal(data, file)
    except OSError as error:
        return f"{file}: cannot be read ({error.strerror})"
    except DataError as error:
        return str(error)
    return None if digest(data) == checksum else f"{file}: differs from the store's other manifest"


def _static_problems(path: Path) -> dict[str, str]:
    """Problems of the files written at creation and of their second copies, by path inside the store."""
    table, checksum = _manifest_table(path)
    found = {}
    for name in ["manifest.json", *table]:
        for where in (name, f"{SPARE}/{name}"):
            if line := _static_problem(path / where, name, table, checksum):
                found[where] = line
    return found


def _shard_problems(header: StoreHeader, shard: int) -> list[str] | None:
    """Problems of a finished shard; None if it has no mark."""
    try:
        files = read_mark(header, shard)["files"]
    except FileNotFoundError:
        return None
    except DataError as error:
        return [str(error)]
    found = [_file_problem(header.shard_path(name, shard), entry) for name, entry in files.items()]
    return [line for line in found if line]


def _file_problem(file: Path, entry: dict[str, Any]) -> str | None:
    try:
        data = file.read_bytes()
    except OSError as error:
        return f"{file}: cannot be read ({error.strerror})"
    if len(data) != entry["bytes"]:
        return f"{file}: {len(data)} bytes, {entry['bytes']} were written"
    if digest(data) != entry["crc32"]:
        return f"{file}: checksum {digest(data)}, {entry['crc32']} was written"
    return None
