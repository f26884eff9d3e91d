"""Fields of a prior store: names, types, row shapes, and text as bytes.

One row per sample (an image and one expression). Row `r` lies in shard `r // SHARD_ROWS`. Shapes: N rows, G
the side of the proposal grid. Every field has a fixed row shape; text is zero-padded UTF-8.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from shared.errors import DataError

STORE_KIND = "l2l-priors"
SCHEMA_VERSION = 2
SHARD_ROWS = 512
"""Rows of a shard, the unit of work, of publication and of repair. With it, no shard file that was cut at a
chunk border can pass for a shorter whole one at any grid size in use; file lengths are recorded and checked
besides."""

SAMPLE_ID_BYTES = 96
EXPRESSION_BYTES = 256
RAW_TEXT_BYTES = 512
IMAGE_HASH = "image_hash"
IMAGE_HASH_BYTES = 16

DTYPES = ("uint8", "uint16", "int32", "int64", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """One array of the store."""

    name: str
    """Array name inside the group: lower-case letters, digits and underscores."""
    dtype: str
    """One of `DTYPES`; stored little-endian."""
    row_shape: tuple[int, ...] = ()
    """Shape of one row; `()` for a scalar per row."""
    chunk: Literal["row", "shard"] = "shard"
    """Inner chunk: one row (read at random, one by one) or a whole shard (small fields, loaded whole)."""
    compress: bool = False
    """Whether chunks are compressed with zstd(1) before their checksum."""

    def __post_init__(self) -> None:
        """Refuse what could not be stored or named."""
        if (
            not self.name.isidentifier()
            or self.name != self.name.lower()
            or self.name in ("attempts", "done", "spare", "manifest")
        ):
            raise DataError(f"field name {self.name!r} is not a lower-case identifier (or is reserved)")
        if self.dtype not in DTYPES:
            raise DataError(f"field {self.name}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if any(size < 1 for size in self.row_shape):
            raise DataError(f"field {self.name}: row shape {self.row_shape} has a size below 1")
        if self.chunk not in ("row", "shard"):
            raise DataError(f"field {self.name}: chunk {self.chunk!r} is neither 'row' nor 'shard'")

    @functools.cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The little-endian numpy dtype of the stored values."""
        return np.dtype(self.dtype).newbyteorder("<")

    @functools.cached_property
    def row_bytes(self) -> int:
        """Bytes of one row before compression."""
        return self.numpy_dtype.itemsize * int(np.prod(self.row_shape, dtype=np.int64))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form, read back by `from_dict`."""
        return {**asdict(self), "row_shape": list(self.row_shape)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FieldSpec":
        """The field that `to_dict` described."""
        return cls(**{**values, "row_shape": tuple(values["row_shape"])})


def prior_fields(grid: int, compress_proposal: bool = False) -> tuple[FieldSpec, ...]:
    """The fields of a prior store.

    Args:
        grid: Side G of the proposal grid, cells.
        compress_proposal: Store `proposal` with zstd(1): 2 to 4 times smaller, about 15 times slower to read.

    Returns:
        Known when a run is planned (static): `sample_id`, `expression`, `image_id`, `split`, `image_hw`.
        Written by the model's run: `raw_text`, `status` (codes of `shared.types.STATUS_CODES`, 0 never
        written), `proposal` (probability x 255 on a G x G grid over the whole original image, row-major,
        centres (i+.5)/G), `box_xyxy_norm` (in [0, 1] of the original image, NaN where there is no box),
        `box_raw_xyxy` (as answered, in the model's own frame, x before y, NaN), `processed_hw` (size the model saw,
        pixels), `confidence` (mean log-probability of the coordinate tokens, NaN if unknown), `edge_logprob`
        (the same for each coordinate), `num_tokens`, `proposer_iou` (what the mask proposer thinks its mask's
        IoU is, NaN if it does not say).
    """
    if not 1 <= grid <= 4096:
        raise DataError(f"proposal grid {grid} is outside 1..4096")
    return (
        FieldSpec(name="sample_id", dtype="uint8", row_shape=(SAMPLE_ID_BYTES,), compress=True),
        FieldSpec(name="expression", dtype="uint8", row_shape=(EXPRESSION_BYTES,), compress=True),
        FieldSpec(name="image_id", dtype="int64"),
        FieldSpec(name="split", dtype="uint8"),
        FieldSpec(name="image_hw", dtype="int32", row_shape=(2,)),
        FieldSpec(name="raw_text", dtype="uint8", row_shape=(RAW_TEXT_BYTES,), compress=True),
        FieldSpec(name="status", dtype="uint8"),
        FieldSpec(
            name="proposal", dtype="uint8", row_shape=(grid, grid), chunk="row", compress=compress_proposal
        ),
        FieldSpec(name="box_xyxy_norm", dtype="float32", row_shape=(4,)),
        FieldSpec(name="box_raw_xyxy", dtype="float32", row_shape=(4,)),
        FieldSpec(name="processed_hw", dtype="int32", row_shape=(2,)),
        FieldSpec(name="confidence", dtype="float32"),
        FieldSpec(name="edge_logprob", dtype="float32", row_shape=(4,)),
        FieldSpec(name="num_tokens", dtype="int32"),
        FieldSpec(name="proposer_iou", dtype="float32"),
    )


def sample_fields(num_samples: int) -> tuple[FieldSpec, ...]:
    """The fields a prior store has besides, if boxes were sampled.

    Args:
        num_samples: S; 0: no boxes were sampled, no fields.

    Returns:
        `sample_box_xyxy_norm` (S boxes as `box_xyxy_norm`, NaN for a sample without a box) and `sample_iou` (mean IoU
        of all pairs of them, a sample without a box counting 0; NaN where the model was not asked).
    """
    if not num_samples:
        return ()
    return (
        FieldSpec(name="sample_box_xyxy_norm", dtype="float32", row_shape=(num_samples, 4)),
        FieldSpec(name="sample_iou", dtype="float32"),
    )


def candidate_fields(num: int, side: int) -> tuple[FieldSpec, ...]:
    """The field a prior store has besides, if candidate masks were asked for.

    Args:
        num: M, masks of an image; 0: none were asked for, no field.
        side: G', cells.

    Returns:
        `candidates`: masks of things in the row's image, whatever the sentence, best first, probability x 255 over the
        whole image, absent ones all zero. The first row of an image in a shard (`first_rows`) holds them for all its
        rows there; the others are zero, which compresses to nothing.
    """
    if not num:
        return ()
    if not 1 <= side <= 4096:
        raise DataError(f"side {side} of candidates is outside 1..4096")
    return (
        FieldSpec(name="candidates", dtype="uint8", row_shape=(num, side, side), chunk="row", compress=True),
    )


def image_hash_fields() -> tuple[FieldSpec, ...]:
    """The static field a prior store has besides, if the bytes of the images were hashed.

    Returns:
        `image_hash`: BLAKE2b of the row's image file, all zero if it could not be read. By it another store knows a row
        that it need not ask for.
    """
    return (FieldSpec(name=IMAGE_HASH, dtype="uint8", row_shape=(IMAGE_HASH_BYTES,), compress=True),)


def first_rows(image_id_N: np.ndarray) -> np.ndarray:
    """For every row, the first row of its shard with the same image: i64 [N].

    Args:
        image_id_N: Image of each row, from the first row of a shard on.
    """
    shard_N = np.arange(len(image_id_N)) // SHARD_ROWS
    pairs_N2 = np.stack([shard_N, image_id_N], 1)
    _, first, which = np.unique(pairs_N2, axis=0, return_index=True, return_inverse=True)
    return first[which.reshape(-1)]


STATIC_PRIOR_FIELDS = ("sample_id", "expression", "image_id", "split", "image_hw")
"""Fields of `prior_fields` that do not depend on the model: given to `create_store` as `static`."""


def encode_text_rows(texts: Sequence[str], width: int, *, strict: bool = False) -> np.ndarray:
    """Text as zero-padded UTF-8 rows.

    A text longer than `width` bytes is cut at the last whole character that fits. Characters that UTF-8 or
    the padding cannot hold (lone surrogates, NUL) become U+FFFD.

    Args:
        texts: N texts.
        width: Bytes of a row.
        strict: Refuse a text that would be cut or changed (for identities).

    Returns:
        u8 [N, width].

    Raises:
        DataError: `strict`, and a text does not survive the round trip; the row is named.
    """
    rows = np.zeros((len(texts), width), np.uint8)
    for row, text in enumerate(texts):
        clean = "".join("\ufffd" if char == "\0" or "\ud800" <= char <= "\udfff" else char for char in text)
        data = clean.encode()
        if len(data) > width:
            data = data[:width].decode(errors="ignore").encode()
        if strict and data.decode() != text:
            raise DataError(f"row {row}: text {text[:60]!r} does not fit {width} bytes of UTF-8 unchanged")
        rows[row, : len(data)] = np.frombuffer(data, np.uint8)
    return rows


def may_be_cut(text: str, width: int) -> bool:
    """Whether a stored text may be the beginning of a longer one: a cut leaves at least `width - 3` bytes."""
    return len(text.encode()) >= width - 3


def decode_text_rows(rows_NW: np.ndarray) -> list[str]:
    """Texts of zero-padded UTF-8 rows: u8 [N, W] to N texts."""
    if rows_NW.dtype != np.uint8 or rows_NW.ndim != 2:
        raise DataError(f"text rows are u8 [N, W], got {rows_NW.dtype} {rows_NW.shape}")
    width = rows_NW.shape[1]
    flat = np.ascontiguousarray(rows_NW).tobytes()
    starts = range(0, len(flat), width) if width else ()
    return [flat[start : start + width].rstrip(b"\0").decode(errors="replace") for start in starts]
