"""Files that appear whole or not at all, and JSON that carries its own checksum.

Publication: write to a name of this process alone (`.<name>.<host>-<pid>-<random>.partial`), fsync, rename,
fsync the folder. A reader sees the old file or the new one; a process that is killed leaves at most its
partial file behind.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import DataError

STALE_SECONDS = 3600.0
"""A partial file of this age belongs to nobody: a publication takes seconds."""

_PARTIAL = re.compile(r"^\..+\.(?P<host>[^.]+)-(?P<pid>\d+)-[0-9a-f]{8}\.partial$")
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)
_USER_ERRNOS = (
    *(*_NO_FOLDER, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())


def _umask() -> int:
    """The process's mask of permissions, which can be read only by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def partial_path(final: Path) -> Path:
    """A fresh name beside `final`, never used by another process or call."""
    return final.with_name(f".{final.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def sync(path: Path) -> None:
    """Make a file's content durable, or the renames and removals in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> int:
    """Write a new file and make its content durable; its inode number. Nothing is left behind on an error."""
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_ino
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def publish_file(final: Path, data: bytes) -> None:
    """Put `data` at `final`, atomically and durably, replacing what was there."""
    partial = partial_path(final)
    write_synced(partial, data)
    os.replace(partial, final)
    sync(final.parent)


@contextlib.contextmanager
def publishing(final: Path) -> Iterator[Path]:
    """A name to write a file to that takes `final`'s place at the end, atomically and durably, whatever was there.

    After an error `final` is as it was. What earlier processes left behind when they were killed is removed first.
    """
    clean_partials(final.parent)
    partial = partial_path(final)
    try:
        yield partial
        os.chmod(partial, 0o666 & ~_umask())  # safetensors makes files that their owner alone can read
        sync(partial)
        os.replace(partial, final)
        sync(final.parent)
    finally:
        partial.unlink(missing_ok=True)


def remove_synced(path: Path) -> None:
    """Remove a file, durably; nothing happens if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync(path.parent)


@contextlib.contextmanager
def disk_errors(
    folder: Path, what: str, safe: str = "finished shards are safe", again: str = "again"
) -> Iterator[None]:
    """Turn a full or forbidden disk, or a file in the folder's place, into a `DataError` that says what to do.

    Args:
        folder: The store, run or folder of results that is written to.
        what: What is being written.
        safe: What need not be feared for.
        again: How the same command is to be run then.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        if error.errno in _NO_FOLDER:
            remedy = "a file is in the way: move it, or choose another folder"
        else:
            remedy = f"make room (or mend the permissions) and run the same command {again}"
        raise DataError(f"{folder}: cannot write {what}: {error.strerror}; {safe}: {remedy}") from error


def clean_partials(folder: Path) -> list[Path]:
    """Remove partial files and folders in `folder` whose writer is gone.

    Gone means: a process of this host that no longer exists, or any partial older than `STALE_SECONDS`. A
    writer that was wrongly taken for gone fails its rename and writes again.

    Returns:
        What was removed.
    """
    removed = []
    for path in sorted(folder.glob(".*.partial")):
        match = _PARTIAL.match(path.name)
        if match is None:
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's on a read-only store
            old = time.time() - path.lstat().st_mtime > STALE_SECONDS
            dead = match["host"] == _host() and not _alive(int(match["pid"]))
            if old or dead:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(path)
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def digest(data: bytes) -> str:
    """CRC-32 of a whole file, 8 hex digits.

    Not CRC-32C, the chunks' own checksum: the CRC of data followed by their CRC is a constant, so the CRC-32C
    of a shard file says nothing about its content. Another polynomial does not cancel out.
    """
    return f"{zlib.crc32(data):08x}"


def file_entry(data: bytes) -> dict[str, Any]:
    """Length and checksum of a file, as manifests and marks hold them."""
    return {"bytes": len(data), "crc32": digest(data)}


def canonical_json(value: Any) -> bytes:
    """The one text of a JSON value, used for everything that is checksummed."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def seal(body: dict[str, Any]) -> bytes:
    """A JSON file that carries the checksum of its body."""
    body = json.loads(json.dumps(body, allow_nan=False))
    return canonical_json({"body": body, "crc32": digest(canonical_json(body))})


def read_file(file: Path) -> bytes:
    """The bytes of one of a store's files.

    Raises:
        FileNotFoundError: It is not there.
        DataError: It cannot be read: somebody else's, or a disk that fails.
    """
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file)) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error


def unseal(data: bytes, where: Path) -> dict[str, Any]:
    """The body of a sealed JSON file.

    Raises:
        DataError: The file is not exactly what `seal` writes: any changed byte is found, white space
            included.
    """
    try:
        value = json.loads(data)
        body = value["body"]
        whole = seal(body) == data
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole or not isinstance(body, dict):
        raise DataError(f"{where}: damaged (the file does not match its own checksum)")
    return body
