"""The bytes of one Zarr v3 shard file (`sharding_indexed`, index at the end), written and read directly.

    chunk 0 | crc32c(chunk 0) | chunk 1 | crc32c(chunk 1) | ... | index | crc32c(index)

The index holds (offset, length) as little-endian u64 pairs, one per chunk of the shard, checksum included in
the length; both numbers are 2^64-1 for a chunk that is not there (rows past the end of the array). With
compression a chunk is zstd(1) data, and the checksum is that of the compressed bytes. This is the standard
format: any Zarr v3 library reads it. It is parsed here because a general reader spends a hundred times longer
on a single row.
"""

import functools
from typing import Any

import google_crc32c
import numpy as np

from shared.errors import DataError
from shared.store.schema import FieldSpec

CRC_BYTES = 4
MISSING = 2**64 - 1


def crc32c(data: bytes | np.ndarray) -> int:
    """CRC-32C of bytes or of a contiguous u8 array."""
    return google_crc32c.value(data)


@functools.cache
def _zstd() -> Any:
    from numcodecs.zstd import Zstd

    return Zstd(level=1)


def chunk_rows(spec: FieldSpec, shard_rows: int) -> int:
    """Rows of one inner chunk of a field whose shards have `shard_rows` rows."""
    return 1 if spec.chunk == "row" else shard_rows


def encode_shard(rows: np.ndarray, spec: FieldSpec, shard_rows: int, rows_per_chunk: int) -> bytes:
    """One shard file.

    Args:
        rows: [n, *row_shape] of the field's dtype, 1 <= n <= shard_rows; the last shard of an array may be
            short.
        spec: The field.
        shard_rows: Rows of a full shard; a multiple of `rows_per_chunk`.
        rows_per_chunk: Rows of an inner chunk. A last chunk that is partly filled is padded with zeros,
            chunks past it are marked missing.

    Returns:
        The file's bytes, a pure function of the arguments.
    """
    assert 1 <= len(rows) <= shard_rows and shard_rows % rows_per_chunk == 0, (
        len(rows),
        shard_rows,
        rows_per_chunk,
    )
    assert rows.dtype == spec.numpy_dtype and rows.shape[1:] == spec.row_shape, (rows.dtype, rows.shape, spec)
    num_chunks = -(-len(rows) // rows_per_chunk)
    chunk_bytes = rows_per_chunk * spec.row_bytes
    flat = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    if num_chunks * rows_per_chunk != len(rows):
        flat = np.concatenate([flat, np.zeros(num_chunks * chunk_bytes - len(flat), np.uint8)])
    chunks = flat.reshape(num_chunks, chunk_bytes)
    stored: list[Any] = [_zstd().encode(chunk) for chunk in chunks] if spec.compress else list(chunks)
    index = np.full((shard_rows // rows_per_chunk, 2), MISSING, "<u8")
    index[:num_chunks, 1] = [len(data) + CRC_BYTES for data in stored]
    index[:num_chunks, 0] = np.cumsum(index[:num_chunks, 1]) - index[:num_chunks, 1]
    stored.append(index.reshape(-1).view(np.uint8))
    return b"".join(part for data in stored for part in (data, crc32c(data).to_bytes(CRC_BYTES, "little")))


def parse_index(file_u8: np.ndarray, num_chunks: int, where: str) -> np.ndarray:
    """The index of a shard file, its checksum and its ranges checked.

    Args:
        file_u8: u8 [bytes], the whole file.
        num_chunks: Chunks of a shard.
        where: The file, for messages.

    Returns:
        u64 [num_chunks, 2]: offset and length of each chunk, both `MISSING` for a chunk that is not there.

    Raises:
        DataError: The file is too short, the checksum is wrong, or a chunk lies outside the file.
    """
    footer_bytes = num_chunks * 16 + CRC_BYTES
    body = len(file_u8) - footer_bytes
    if body < 0:
        raise DataError(f"{where}: {len(file_u8)} bytes are too few for a shard of {num_chunks} chunks")
    footer = file_u8[body:]
    if crc32c(footer[:-CRC_BYTES]) != int(footer[-CRC_BYTES:].view("<u4")[0]):
        raise DataError(f"{where}: the shard index fails its checksum")
    index = footer[:-CRC_BYTES].view("<u8").reshape(num_chunks, 2)
    there = index[:, 0] != MISSING
    begin, length = index[there, 0].astype(np.int64), index[there, 1].astype(np.int64)
    if ((begin < 0) | (length < CRC_BYTES) | (begin + length > body)).any():
        raise DataError(f"{where}: the shard index points outside the file")
    return index


def decode_chunk(stored_u8: np.ndarray, spec: FieldSpec, rows_per_chunk: int, where: str) -> np.ndarray:
    """The rows of one stored chunk.

    Args:
        stored_u8: u8 [bytes], the chunk with its trailing checksum.
        spec: The field.
        rows_per_chunk: Rows of an inner chunk.
        where: The chunk, for messages.

    Returns:
        [rows_per_chunk, *row_shape] of the field's dtype; it may share memory with `stored_u8`.

    Raises:
        DataError: The checksum is wrong, or the data have another size.
    """
    data = stored_u8[:-CRC_BYTES]
    if crc32c(data) != int.from_bytes(stored_u8[-CRC_BYTES:].tobytes(), "little"):
        raise DataError(f"{where}: stored data fail their checksum")
    if spec.compress:
        try:
            data = np.frombuffer(_zstd().decode(data), np.uint8)
        except RuntimeError as error:
            raise DataError(f"{where}: stored data do not decompress: {error}") from error
    if data.nbytes != rows_per_chunk * spec.row_bytes:
        raise DataError(f"{where}: {data.nbytes} bytes stored, {rows_per_chunk * spec.row_bytes} expected")
    return data.view(spec.numpy_dtype).reshape(rows_per_chunk, *spec.row_shape)
