"""Soft masks made elsewhere: a folder of files or a Zarr group, keyed by sample id and checked as they are read.

Folder: `<sample_id>.png` (one channel of 1, 8 or 16 bits, full scale is certain) or `<sample_id>.npy` (two axes; bool,
uint8 with 255 as certain, or floats in [0, 1]); other files are passed over. Zarr group (v2 or v3): `sample_id`
[N], text or zero-padded UTF-8 bytes [N, W], and `mask` [N, h, w] of the types of an `.npy` file; `expression`, text as
`sample_id` is, may say what each mask was made for.

Any resolution will do; a mask covers the whole original image, and is square or of its proportions.

Zarr reads what was never written as the array's fill value, and leaves out chunks that hold nothing else. A mask that
is the fill value throughout is therefore none: an export that was killed half way must not teach that its second half
is background, and a mask of zeros would be no prior anyway. Of a mask stored in tiles one is enough.

Legend: N masks of a source, h, w a mask's own size, G side of the stored grid.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from shared.errors import DataError

SOURCE_VERSION = "2"
"""Changes whenever the same file could give another map; part of the store's fingerprint."""
SUFFIXES = (".png", ".npy")
PNG_MODES = ("1", "L", "I;16")
"""Pillow's names of one channel with 1, 8 and 16 bits."""
MAX_SIDE = 16_384
"""Masks of a longer side are refused."""
MAX_STEP = 32
"""Networks want sides that are multiples of a step, most often no larger than this."""
_ZARR_FILES = ("zarr.json", ".zgroup")


class MaskSource(Protocol):
    """Soft masks by sample id."""

    @property
    def sample_ids(self) -> frozenset[str]:
        """Every id the source has a mask for."""
        ...

    @property
    def num_unwritten(self) -> int:
        """Ids that it names and has no mask for, as far as that is known without reading masks."""
        ...

    @property
    def expressions(self) -> dict[str, str]:
        """What masks were made for, by sample id, as far as the source says it; a text may have lost its end."""
        ...

    def place(self, sample_id: str) -> str:
        """Where a mask lies, for messages."""
        ...

    def read(self, sample_ids: Sequence[str]) -> list[np.ndarray | None]:
        """Probabilities of some masks, float32 [h, w] in [0, 1] each, in the order asked for.

        None for a mask that turns out never to have been written.

        Raises:
            DataError: A mask that cannot be read or is no soft mask; it names the file (or array and row).
        """
        ...


def open_source(path: Path) -> MaskSource:
    """Open a folder of files or a Zarr group; reads names and ids, no mask.

    Raises:
        DataError: Nothing there, no mask in it, or an id twice.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no folder of masks there")
    return ZarrSource(path) if _is_zarr(path) else FolderSource(path)


def source_files(path: Path) -> list[tuple[str, Path]]:
    """(name below `path`, file) of everything a source's masks depend on; raises as `open_source` does."""
    if not path.is_dir():
        raise DataError(f"{path}: no folder of masks there")
    if _is_zarr(path):
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        files = _mask_files(path)
    return [(str(file.relative_to(path)), file) for file in files]


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in _ZARR_FILES)


def _mask_files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())


class FolderSource:
    """One file per mask."""

    def __init__(self, path: Path) -> None:
        """List the files."""
        self._scale = _Scale()
        self._files: dict[str, Path] = {}
        for file in _mask_files(path):
            other = self._files.setdefault(file.stem, file)
            if other != file:
                raise DataError(f"{path}: sample {file.stem!r} has two masks, {other.name} and {file.name}")
        if not self._files:
            raise DataError(f"{path}: holds no {' or '.join(SUFFIXES)} file and is no Zarr group")

    @property
    def sample_ids(self) -> frozenset[str]:
        """Every id the source has a mask for."""
        return frozenset(self._files)

    @property
    def num_unwritten(self) -> int:
        """None: a file is there or is not."""
        return 0

    @property
    def expressions(self) -> dict[str, str]:
        """None: a file has no place for it."""
        return {}

    def place(self, sample_id: str) -> str:
        """Its file."""
        return str(self._files[sample_id])

    def read(self, sample_ids: Sequence[str]) -> list[np.ndarray | None]:
        """Probabilities of some masks; see `MaskSource.read`."""
        files = [self._files[sample_id] for sample_id in sample_ids]
        arrays = [_load_png(file) if file.suffix == ".png" else _load_npy(file) for file in files]
        return list(self._scale.probs(arrays, list(map(self.place, sample_ids))))


def _load_png(file: Path) -> np.ndarray:
    """Pixels of a one-channel PNG: bool, uint8 or uint16 [h, w]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=("PNG",)) as image:
                mode, array = image.mode, np.asarray(image)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"{file}: mask cannot be read: {error}") from error
    if mode not in PNG_MODES:
        raise DataError(f"{file}: a PNG of mode {mode}, expected one grey channel ({', '.join(PNG_MODES)})")
    return array.astype(np.uint16) if mode == "I;16" else array


def _load_npy(file: Path) -> np.ndarray:
    """The array of an `.npy` file; nothing in it is unpickled, and its size is known before it is read."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"{file}: mask cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file}: not an .npy file but an archive of several arrays")
    return array


class ZarrSource:
    """A Zarr group with `sample_id`, `mask` and, perhaps, `expression`."""

    def __init__(self, path: Path) -> None:
        """Read the ids and the shape of the masks."""
        self._where, self._scale = path, _Scale()
        ids, self._mask, said = _read_group(path)
        texts = _texts(ids, f"{path}: sample_id")
        expressions = [] if said is None else _texts(said, f"{path}: expression")
        if said is not None and len(expressions) != len(texts):
            raise DataError(f"{path}: {len(expressions)} expressions for {len(texts)} sample_ids")
        if self._mask.ndim != 3 or self._mask.shape[0] != len(texts):
            raise DataError(f"{path}: mask is {list(self._mask.shape)}, expected [{len(texts)}, h, w]")
        self._row: dict[str, int] = {}
        for row, text in enumerate(texts):
            first = self._row.setdefault(text, row)
            if first != row:
                raise DataError(f"{path}: sample_id {text!r} is in row {first} and again in row {row}")
        if not self._row:
            raise DataError(f"{path}: holds no mask")
        stored_N = _stored_rows(self._mask, path / "mask")
        self._num_unwritten = len(texts) - int(stored_N.sum())
        self._row = {text: row for text, row in self._row.items() if stored_N[row]}
        said_of = expressions or [""] * len(texts)
        self._expressions = {text: said_of[row] for text, row in self._row.items() if said_of[row]}

    @property
    def sample_ids(self) -> frozenset[str]:
        """Every id the source has a mask for: it, or a tile of it, lies in a chunk that was written."""
        return frozenset(self._row)

    @property
    def num_unwritten(self) -> int:
        """Ids whose masks lie in chunks that were never written."""
        return self._num_unwritten

    @property
    def expressions(self) -> dict[str, str]:
        """What the masks were made for; empty without an array `expression`."""
        return self._expressions

    def place(self, sample_id: str) -> str:
        """Its group and row."""
        return f"{self._where}: mask row {self._row[sample_id]}"

    def read(self, sample_ids: Sequence[str]) -> list[np.ndarray | None]:
        """Probabilities of some masks; see `MaskSource.read`."""
        if not sample_ids:
            return []
        rows_N = np.array([self._row[sample_id] for sample_id in sample_ids])
        sorted_N, place_N = np.unique(rows_N, return_inverse=True)
        try:
            mask_Nhw = np.asarray(self._mask.oindex[sorted_N])
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{self._where}: mask rows {rows_N.min()} to {rows_N.max()}: {error}") from error
        fill = 0 if self._mask.fill_value is None else self._mask.fill_value
        written = [at for at in range(len(sorted_N)) if not _is_all(mask_Nhw[at], fill)]
        named = dict(zip(place_N.tolist(), map(self.place, sample_ids), strict=True))
        names = [named[at] for at in written]
        probs = dict(zip(written, self._scale.probs([mask_Nhw[at] for at in written], names), strict=True))
        return [probs.get(at) for at in place_N]


def _stored_rows(array: Any, folder: Path) -> np.ndarray:
    """Rows of an array of which a chunk (a shard, where it has some) is on the disk: bool [N]."""
    stored = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    sides = array.shards or array.chunks
    num_chunks = [-(-length // side) for length, side in zip(array.shape, sides, strict=True)]
    stored_N = np.zeros(array.shape[0], bool)
    for first, *rest in np.ndindex(*num_chunks):
        if array.metadata.encode_chunk_key((first, *rest)) in stored:
            stored_N[first * sides[0] : (first + 1) * sides[0]] = True
    return stored_N


def _is_all(array_hw: np.ndarray, value: Any) -> bool:
    """Whether every pixel is a value, which may be NaN."""
    same_hw = np.isnan(array_hw) if value != value else array_hw == value
    return bool(same_hw.all())


def _read_group(path: Path) -> tuple[np.ndarray, Any, np.ndarray | None]:
    """The `sample_id` array, read, the `mask` array, unread, and the `expression` array, read, if there is one."""
    import zarr

    try:
        group = zarr.open_group(path, mode="r")
        found = {name: group.get(name) for name in ("sample_id", "mask")}
        lacking = [name for name, array in found.items() if not isinstance(array, zarr.Array)]
        ids = None if lacking else np.asarray(found["sample_id"][...])  # type: ignore[index]
        said = group.get("expression")
        expressions = np.asarray(said[...]) if isinstance(said, zarr.Array) else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: not readable as a Zarr group of masks: {error}") from error
    if ids is None:
        raise DataError(f"{path}: has no array {lacking[0]!r}")
    return ids, found["mask"], expressions


def _texts(array: np.ndarray, where: str) -> list[str]:
    """Rows as text, from text or bytes [N] or from zero-padded UTF-8 bytes uint8 [N, W]."""
    if array.ndim == 2 and array.dtype == np.uint8:
        rows = [row.tobytes().rstrip(b"\0") for row in array]
    elif array.ndim == 1 and array.dtype.kind in "SUTO":
        rows = list(array)
    else:
        raise DataError(f"{where} is {array.dtype} {list(array.shape)}, expected text [N] or uint8 [N, W]")
    try:
        return [bytes(row).decode() if isinstance(row, bytes) else str(row) for row in rows]
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: {error}") from None


class _Scale:
    """Turns the masks of one source into probabilities, and sees to it that whole numbers are on their full scale.

    Where 0 and 1 were written for background and object, every mask would be background, nearly certain. A single soft
    mask may well be so faint, so that the masks that were read together, and those before them, judge.
    """

    def __init__(self) -> None:
        self._above_one = False

    def probs(self, arrays: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """Probabilities float32 [h, w] of some masks as stored, `names` for messages; raises as `as_prob` does.

        Raises:
            DataError: Some masks of whole numbers reach 1, and none so far has gone beyond.
        """
        probs = [as_prob(array_hw, name) for array_hw, name in zip(arrays, names, strict=True)]
        tops = [int(array_hw.max()) if array_hw.dtype.kind == "u" else 0 for array_hw in arrays]
        self._above_one = self._above_one or max(tops, default=0) > 1
        if not self._above_one and 1 in tops:
            first = tops.index(1)
            full = np.iinfo(arrays[first].dtype).max
            raise DataError(
                f"{names[first]}: the largest value is 1 where {full} counts as certain, and no mask read so far holds "
                f"a larger one; write 0 and {full}"
            )
        return probs


def as_prob(array_hw: np.ndarray, where: str) -> np.ndarray:
    """Probabilities float32 [h, w] of a mask as stored.

    Args:
        array_hw: bool, uint8, uint16 (full scale is certain) or floats in [0, 1], two axes.
        where: File, or array and row, for messages.

    Raises:
        DataError: Another type or number of axes, no pixel, or a value that is no probability.
    """
    if array_hw.ndim != 2 or not array_hw.size or max(array_hw.shape) > MAX_SIDE:
        raise DataError(f"{where}: shape is {list(array_hw.shape)}, expected [h, w] of 1 to {MAX_SIDE} each")
    if array_hw.dtype == bool:
        return np.asarray(array_hw, np.float32)
    if array_hw.dtype in (np.uint8, np.uint16):
        return np.asarray(array_hw, np.float32) / np.iinfo(array_hw.dtype).max
    if array_hw.dtype.kind != "f":
        raise DataError(f"{where}: type is {array_hw.dtype}, expected bool, uint8, uint16 or floats")
    good_hw = (array_hw >= 0) & (array_hw <= 1)
    if not good_hw.all():
        row, column = (int(index) for index in np.argwhere(~good_hw)[0])
        value = array_hw[row, column]
        raise DataError(f"{where}: row {row}, column {column} is {value}, expected a probability in [0, 1]")
    return np.asarray(array_hw, np.float32)


def has_proportions(size_hw: tuple[int, int], image_hw: tuple[int, int]) -> bool:
    """Whether a mask of a size may be of an image: square, as a network's input often is, or of its proportions.

    Sides may have been rounded, down or up to a whole pixel or to the nearest multiple of a step of up to `MAX_STEP`.
    """
    (height, width), (image_height, image_width) = size_hw, image_hw
    rounding = max(1.0, min(math.gcd(height, width), MAX_STEP) / 2)
    apart = abs(height * image_width - width * image_height)
    return height == width or apart < rounding * (image_height + image_width)


def to_grid(prob_hw: np.ndarray, grid: int) -> np.ndarray:
    """A mask on the stored grid: uint8 [G, G], bilinear, averaged where it shrinks."""
    resized = Image.fromarray(prob_hw).resize((grid, grid), Image.Resampling.BILINEAR)
    return np.rint(np.clip(np.asarray(resized), 0, 1) * 255).astype(np.uint8)
