"""Image files: the one place where they are found, opened and decoded, for both stages.

What comes out is RGB, upright, decoded to the end. A file that cannot give that is refused by name: missing, outside
its folder, truncated, too large to be an honest photo, or in a number format without a defined range.

Legend: H height, W width.
"""

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from shared.errors import DataError

MAX_PIXELS = 80_000_000
"""Largest image decoded, height x width: a few kilobytes can claim gigabytes. Below the bound at which Pillow warns."""

LONG_NAME = 200
"""Characters of a path that a message shows: what was meant as a mask, and is none, may have thousands."""

REDUCED_SIZE_FACTOR = 2
"""An image decoded at a reduced scale is at least this many times as large as it is asked for, each way."""

_ORIENTATION = 0x0112
"""EXIF's tag."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""

_WIDE_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Modes in which Pillow opens grayscale of 16 bits."""


def unsafe_file_name(file_name: str) -> bool:
    """Whether a file name could lead out of the image folder (absolute, `..`, backslash, NUL) or is empty."""
    path = PurePosixPath(file_name)
    return (
        path.is_absolute() or not path.parts or ".." in path.parts or "\\" in file_name or "\0" in file_name
    )


def find_image(root: Path, file_name: str, folders: Sequence[str]) -> Path:
    """The file of an image.

    Args:
        root: Folder of the data set.
        file_name: Name as annotated, relative to one of `folders`.
        folders: Folders below `root` to look in, in this order; "" is `root` itself.

    Raises:
        DataError: It is in none of them, its name leads out of them, or a disk does not say whether it is there.
    """
    if unsafe_file_name(file_name):
        raise DataError(f"{root}: image file name {file_name!r} leads out of the image folder")
    for folder in folders:
        path = root / folder / file_name
        if file_exists(path):
            return path
    if list(folders) == [""]:
        raise DataError(f"{root / file_name}: not found")
    places = ", ".join(folder or "the folder itself" for folder in folders)
    raise DataError(f"{root}: image {file_name} is in none of {places}")


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
            return _as_rgb(ImageOps.exif_transpose(file))
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"{path}: image cannot be read: {' '.join(str(error).split())}") from error


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
            return (file.width, file.height) if _is_turned(file) else (file.height, file.width)
    except Exception as error:
        raise DataError(f"{path}: image cannot be read: {' '.join(str(error).split())}") from error


def image_orientation(path: Path | str, data: bytes | None = None) -> int:
    """How `read_image` turns an image upright, as EXIF counts: 1 is not at all; arguments as of `read_image`."""
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as file:
            found = file.getexif().get(_ORIENTATION, 1)
            return found if found in range(2, 9) else 1
    except Exception as error:
        raise DataError(f"{path}: image cannot be read: {' '.join(str(error).split())}") from error


def read_mask(path: Path) -> np.ndarray:
    """A mask drawn as an image of one channel: what is at least half as bright as its brightest pixel.

    So 0/1, 0/255 and 16-bit masks read alike, and a smoothed outline is cut at its middle. An image of one colour is
    empty if that is 0 and full otherwise.

    Returns:
        `bool [H, W]`.

    Raises:
        DataError: The file cannot be read, or has several channels or more than two palette colours.
    """
    try:
        with Image.open(path) as file:
            _check_size(file)
            file.load()
            if file.mode not in ("1", "L", "P", *_WIDE_GREY):
                raise ValueError(f"mode {file.mode}; a mask has one channel (0 outside, 255 inside)")
            value_HW = np.asarray(file).astype(np.int64)
            if file.mode == "P" and len(np.unique(value_HW)) > 2:
                raise ValueError("a palette of more than two colours; which one is the object?")
    except Exception as error:
        raise DataError(f"{path}: mask cannot be read: {' '.join(str(error).split())}") from error
    return (value_HW > 0) & (2 * value_HW >= value_HW.max())


def _is_turned(file: Image.Image) -> bool:
    return file.getexif().get(_ORIENTATION) in _TURNED


def _decode_smaller(file: Image.Image, at_least_hw: tuple[int, int]) -> None:
    """Have a codec that can do so decode at the least scale that leaves twice the size asked for."""
    height, width = (REDUCED_SIZE_FACTOR * side for side in at_least_hw)
    file.draft(None, (height, width) if _is_turned(file) else (width, height))


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
