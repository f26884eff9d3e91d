"""Image files: the one place where they are found, opened and decoded, for both stages.

What comes out is RGB, upright, decoded to the end. A file that cannot give that is refused by name: missing, outside
its folder, truncated, too large to be an honest photo, or in a number format without a defined range.

Legend: H height, W width.
"""

import io
import struct
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from shared.errors import DataError, short
from shared.near_names import nearly_named

MAX_PIXELS = 80_000_000
"""Largest image decoded, height x width: a few kilobytes can claim gigabytes. Below the bound at which Pillow warns."""

LONG_NAME = 200
"""Characters of a path that a message shows: what was meant as a mask, and is none, may have thousands."""

REDUCED_SIZE_FACTOR = 2
"""An image decoded at a reduced scale is at least this many times as large as it is asked for, each way."""

DIM_BITS = 12
"""Grey of 16 bits whose values take no more than these was not meant to: of them the upper 4 would be left."""

MAX_LABELS = 16
"""A mask image of at most so many values is a map of labels if one of them fills an area; a soft mask has more, and is
one only if most of them do, without a transition."""

LEAP = 0.1
"""Neighbours are far from each other if so large a share of all values lies between theirs."""

SHOWN_LABELS = 8
"""Most values of a map of labels that a message shows."""

JPEG_NOISE = 16
"""What JPEG makes of a black picture is not brighter than this."""

_ORIENTATION = 0x0112
"""EXIF's tag."""

_TIFF_WIDTH = 0x0100
"""TIFF's tag of the width of the pixels as stored."""

_EXIF_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""Keywords of those texts in a PNG that may hold an orientation."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""

_WIDE_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Modes in which Pillow opens grayscale of 16 bits."""


def unsafe_file_name(file_name: str) -> str:
    """Why a file name cannot be one below the image folder, for a message; "" if it can.

    It leads out (absolute, `..`, NUL), is empty, or has a backslash, as paths of Windows have.
    """
    plain = file_name.replace("\\", "/")
    path = PurePosixPath(plain)
    has_backslash = plain != file_name
    if (
        path.is_absolute()
        or not path.parts
        or ".." in path.parts
        or "\0" in file_name
        or (has_backslash and PureWindowsPath(file_name).drive)
    ):
        return "leads out of the image folder: name it from there, and put or link the file below it"
    if not has_backslash:
        return ""
    return f"holds a backslash; write {short(plain)}"


def find_image(root: Path, file_name: str, folders: Sequence[str]) -> Path:
    """The file of an image.

    Args:
        root: Folder of the data set.
        file_name: Name as annotated, relative to one of `folders`.
        folders: Folders below `root` to look in, in this order; "" is `root` itself.

    Raises:
        DataError: It is in none of them, its name leads out of them, or a disk does not say whether it is there.
    """
    if fault := unsafe_file_name(file_name):
        raise DataError(f"{root}: file name {short(file_name, LONG_NAME)} {fault}")
    for folder in folders:
        path = root / folder / file_name
        if file_exists(path):
            return path
    hint = next(filter(None, (nearly_named(root / folder, file_name) for folder in folders)), "")
    if list(folders) == [""]:
        raise DataError(f"{root / file_name}: not found{hint}")
    places = ", ".join(folder or "the folder itself" for folder in folders)
    raise DataError(f"{root}: image {file_name} is in none of {places}{hint}")


def file_exists(path: Path) -> bool:
    """Whether there is a file at a path.

    Raises:
        DataError: Nobody can say: a name that is too long, a folder that may not be entered, a network disk at fault.
    """
    try:
        return path.is_file()
    except OSError as error:
        where = str(path) if len(str(path)) <= LONG_NAME else f"{str(path)[:LONG_NAME]}..."
        raise DataError(f"{where}: cannot be looked for: {error.strerror or error}") from error


def read_image(
    path: Path | str, data: bytes | None = None, *, at_least_hw: tuple[int, int] | None = None
) -> Image.Image:
    """Decode an image to the end: RGB, turned upright by its EXIF orientation.

    Grayscale of 16 bits keeps its upper 8; transparent pixels are laid over white; of an animation the first picture
    counts.

    A large JPEG whose reader shrinks it anyway can be decoded at 1/2, 1/4 or 1/8 of its size, which takes a part of the
    time. Of a photo shrunk to `at_least_hw` in this way pixels differ from those of the whole decoded image shrunk
    alike by less than 1 of 255 in the mean, and 99% of them by at most 4.

    Args:
        path: The file, or a name for messages where `data` is given.
        data: Its bytes, if they have been read already.
        at_least_hw: Height and width in pixels to which the caller will shrink the image: the result, at the least
            scale the codec has, is at least twice as large each way. None, or a codec without scales: the whole image.

    Raises:
        DataError: The file cannot be read or decoded, ends early, or is too large.
    """
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as file:
            _check_size(file)
            if at_least_hw is not None:
                _decode_smaller(file, at_least_hw)
            turned = _orientation(file) != 1
            file.load()
            return _as_rgb(ImageOps.exif_transpose(file) if turned else file)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise _unreadable(path, "image", error) from error


def scales_down(size_hw: tuple[int, int], at_least_hw: tuple[int, int]) -> bool:
    """Whether an image is large enough to be decoded at half its size or less for a caller that shrinks it so far."""
    return all(
        side >= 2 * REDUCED_SIZE_FACTOR * wanted for side, wanted in zip(size_hw, at_least_hw, strict=True)
    )


def image_size_hw(path: Path | str, data: bytes | None = None) -> tuple[int, int]:
    """Height and width of the upright image, pixels, from the file's head alone; arguments as of `read_image`."""
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as file:
            _check_size(file)
            return (file.width, file.height) if _swaps_sides(file) else (file.height, file.width)
    except Exception as error:
        raise _unreadable(path, "image", error) from error


def image_orientation(path: Path | str, data: bytes | None = None) -> int:
    """How `read_image` turns an image upright, as EXIF counts: 1 is not at all; arguments as of `read_image`."""
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as file:
            return _orientation(file)
    except Exception as error:
        raise _unreadable(path, "image", error) from error


def wide_grey_peak(path: Path | str, data: bytes | None = None) -> int | None:
    """The brightest value of a grey image of 16 bits, None of any other image; arguments as of `read_image`."""
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as file:
            _check_size(file)
            return int(np.asarray(file).max()) if file.mode in _WIDE_GREY else None
    except Exception as error:
        raise _unreadable(path, "image", error) from error


def read_mask(path: Path) -> np.ndarray:
    """A mask drawn as an image of one channel: what is at least half as bright as its brightest pixel.

    So 0/1, 0/255 and 16-bit masks read alike, and a smoothed outline is cut at its middle. Of a palette, of two colours
    at most, their brightness counts, not their numbers. An image of one colour is empty if that is black and full
    otherwise; a JPEG in which nothing is brighter than `JPEG_NOISE` is empty.

    A map of labels is refused, since nothing says which label is the object: an image, other than a JPEG, of at most
    `MAX_LABELS` values in which one between 0 and the brightest fills an area of 3 x 3 pixels; or of more, where such
    areas hold most of the values and most of the pixels in between, and most of what lies beside them is far from their
    values. The pixels of a smoothed outline fill no area. A soft mask may have areas, too: of few values, where it is
    sure, or of all where it is large; then their values change little by little.

    Returns:
        `bool [H, W]`.

    Raises:
        DataError: The file cannot be read, has several channels, or does not say which of its values or colours is the
            object.
    """
    try:
        with Image.open(path) as file:
            _check_size(file)
            file.load()
            if file.mode not in ("1", "L", "P", *_WIDE_GREY):
                raise ValueError(f"mode {file.mode}; a mask has one channel (0 outside, 255 inside)")
            value_HW = np.asarray(_brightness(file) if file.mode == "P" else file).astype(np.int64)
            if file.format not in ("JPEG", "MPO"):
                _refuse_labels(value_HW)
            elif value_HW.max() <= JPEG_NOISE:
                value_HW[:] = 0
    except Exception as error:
        raise _unreadable(path, "mask", error) from error
    return (value_HW > 0) & (2 * value_HW >= value_HW.max())


def _unreadable(path: Path | str, kind: str, error: Exception) -> DataError:
    """What is told of a file, whose name is not repeated as in the words of Python and Pillow."""
    if isinstance(error, UnidentifiedImageError):
        said = "not an image of a known format"
    else:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
    return DataError(f"{path}: {kind} cannot be read: {said}")


def _brightness(file: Image.Image) -> Image.Image:
    """A palette image of one or two colours in grey; raises ValueError for others, and where both are bright."""
    rgb = file.convert("RGB")
    colours = [colour for _, colour in rgb.getcolors(2) or ()]
    if not colours:
        raise ValueError("a palette of more than two colours; which one is the object?")
    grey = rgb.convert("L")
    value_HW = np.asarray(grey)
    if len(colours) == 2 and 2 * int(value_HW.min()) >= value_HW.max():
        raise ValueError(
            f"palette colours {colours[0]} and {colours[1]} are alike bright; which one is the object?"
        )
    return grey


def _refuse_labels(value_HW: np.ndarray) -> None:
    """Raise ValueError for a map of labels, as `read_mask` says."""
    brightest = value_HW.max()
    between_HW = (value_HW > 0) & (value_HW < brightest)
    labels = np.unique(value_HW[between_HW])
    if not len(labels):
        return
    filled_HW = between_HW & _in_area(value_HW)
    if len(labels) > MAX_LABELS - 2:
        is_map = (
            2 * filled_HW.sum() > between_HW.sum()
            and 2 * len(np.unique(value_HW[filled_HW])) > len(labels)
            and _leaps(value_HW, filled_HW)
        )
    else:
        is_map = bool(filled_HW.any())
    if is_map:
        values = [*labels.tolist(), int(brightest)]
        shown = ", ".join(map(str, values[:SHOWN_LABELS]))
        more = f", ... ({len(values)} in all)" if len(values) > SHOWN_LABELS else ""
        raise ValueError(f"values {shown}{more} fill areas; which one is the object? (0 outside, 255 inside)")


def _in_area(value_HW: np.ndarray) -> np.ndarray:
    """Pixels that lie in an area of 3 x 3 pixels of one value: bool [H, W]."""
    area_HW = np.zeros(value_HW.shape, bool)
    if min(value_HW.shape) < 3:
        return area_HW
    right_HV = value_HW[:, 1:] == value_HW[:, :-1]
    three_HV = right_HV[:, 1:] & right_HV[:, :-1]
    below_HV = value_HW[1:, 1:-1] == value_HW[:-1, 1:-1]
    centre_HV = three_HV[1:-1] & three_HV[:-2] & three_HV[2:] & below_HV[1:] & below_HV[:-1]
    wide_HV = np.zeros((len(centre_HV), value_HW.shape[1]), bool)
    for part_HV in (wide_HV[:, :-2], wide_HV[:, 1:-1], wide_HV[:, 2:]):
        part_HV |= centre_HV
    for part_HW in (area_HW[:-2], area_HW[1:-1], area_HW[2:]):
        part_HW |= wide_HV
    return area_HW


def _leaps(value_HW: np.ndarray, filled_HW: np.ndarray) -> bool:
    """Whether most neighbours of another value than an area's are far from it among the values in order."""
    values = np.unique(value_HW)
    rank_HW = np.searchsorted(values, value_HW)
    num_steps, num_leaps = 0, 0
    for first, second in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
    ):
        apart_P = np.abs(rank_HW[first] - rank_HW[second])[filled_HW[first] | filled_HW[second]]
        num_steps += int((apart_P > 0).sum())
        num_leaps += int((apart_P > LEAP * len(values)).sum())
    return 2 * num_leaps > num_steps


def _orientation(file: ImageFile.ImageFile) -> int:
    """How an image is to be turned upright, 1 to 8 as EXIF counts, without decoding a pixel of it if that can be."""
    late = file.format != "PNG" or _has_late_exif(file)
    # a PNG's own getexif() decodes the pixels, to see what stands behind them
    found = (file.getexif() if late else Image.Image.getexif(file)).get(_ORIENTATION, 1)
    return found if found in range(2, 9) else 1


def _swaps_sides(file: ImageFile.ImageFile) -> bool:
    """Whether the upright image is as wide as Pillow says that the file is high.

    Of a TIFF some versions of Pillow tell the upright size at once: its width is then not the one in the file.
    """
    stored_width = file.tag_v2.get(_TIFF_WIDTH) if isinstance(file, TiffImageFile) else file.width
    return _orientation(file) in _TURNED and file.width == stored_width


def _has_late_exif(file: ImageFile.ImageFile) -> bool:
    """Whether a PNG has an orientation, perhaps, behind its pixels: by the heads of its chunks."""
    stream = file.fp
    assert stream is not None
    back = stream.tell()
    try:
        stream.seek(8)
        behind = False
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            behind |= kind == b"IDAT"
            start = stream.tell()
            if behind and kind == b"eXIf":
                return True
            if behind and kind in (b"tEXt", b"zTXt", b"iTXt") and stream.read(22).startswith(_EXIF_TEXTS):
                return True
            stream.seek(start + length + 4)
        return False
    finally:
        stream.seek(back)


def _decode_smaller(file: ImageFile.ImageFile, at_least_hw: tuple[int, int]) -> None:
    """Have a codec that can do so decode at the least scale that leaves twice the size asked for."""
    height, width = (REDUCED_SIZE_FACTOR * side for side in at_least_hw)
    file.draft(None, (height, width) if _orientation(file) in _TURNED else (width, height))


def _check_size(file: Image.Image) -> None:
    if file.width * file.height > MAX_PIXELS:
        raise ValueError(f"{file.width} x {file.height} pixels are more than {MAX_PIXELS}")


def _as_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode that Pillow decodes."""
    if image.mode in _WIDE_GREY:
        value_HW = np.asarray(image).astype(np.int64)
        if value_HW.min() < 0 or value_HW.max() > 65_535:
            raise ValueError(f"mode {image.mode} with values beyond 16 bits")
        return Image.fromarray((value_HW >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
