"""Reads every image that a data set refers to, and says what only its bytes can show."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.check_report import problem_of
from shared.errors import DataError
from shared.image_pack import ImageStore, digest_of
from shared.images import DIM_BITS, image_orientation, read_image, wide_grey_peak
from shared.layout import OWN_ROW, ImageRecord, Layout, Problem
from shared.runlog import progress as progress_over


@dataclass(frozen=True, kw_only=True)
class ImageFindings:
    """What the image files of a data set have shown; filled on the way."""

    problems: list[Problem] = field(default_factory=list)
    """In order of the images."""
    turned: dict[str, int] = field(default_factory=dict)
    """EXIF orientation of those that are turned upright, by file name."""
    dim: dict[str, int] = field(default_factory=dict)
    """Brightest value of those of 16-bit grey that use at most `DIM_BITS` bits, by file name."""
    first_of: dict[int, int] = field(default_factory=dict)
    """The first image of the same bytes, by the id of every later one."""


def look_at_images(layout: Layout, image_ids: Collection[int], progress: bool) -> ImageFindings:
    """Decode images to the end.

    Args:
        layout: The annotations.
        image_ids: The images that are referred to, each once.
        progress: Show progress on standard error.
    """
    images = ImageStore(layout.root, layout.image_folders)
    found = ImageFindings()
    seen: dict[bytes, int] = {}
    for image_id in progress_over(
        image_ids, len(image_ids), "checking images", quiet=not progress, unit="image"
    ):
        record = layout.images[image_id]
        found.problems.extend(_look_at(layout, images, record, found, seen))
    return found


def copies_by_name(layout: Layout, first_of: dict[int, int]) -> dict[str, str]:
    """`ImageFindings.first_of` in words: file name and id, or the line of a user's own data."""
    word = OWN_ROW if layout.row_name == OWN_ROW else "id"
    said = {
        image_id: f"{layout.images[image_id].file_name} ({word} {image_id})"
        for image_id in {*first_of, *first_of.values()}
    }
    return {said[image_id]: said[first] for image_id, first in first_of.items()}


def _look_at(
    layout: Layout, images: ImageStore, record: ImageRecord, found: ImageFindings, seen: dict[bytes, int]
) -> Iterator[Problem]:
    """What is wrong with one image; what is merely worth knowing goes to `found`, its hash to `seen`."""
    name, row = record.file_name, f"image {record.image_id}"
    try:
        place = images.place(name)
    except DataError as error:
        yield problem_of("missing image file", layout.instances_path, row, str(error))
        return
    try:
        data = images.data(name)
        image = read_image(place, data)
        orientation, peak = image_orientation(place, data), wide_grey_peak(place, data)
    except DataError as error:
        yield problem_of("unreadable image file", place, row, str(error).removeprefix(f"{place}: "))
        return
    digest = digest_of(data)
    first = seen.setdefault(digest, record.image_id)
    if first != record.image_id:
        found.first_of[record.image_id] = first
    if orientation != 1:
        found.turned[name] = orientation
    if peak and peak < 2**DIM_BITS:
        found.dim[name] = peak
    if image.size != (record.width, record.height):
        detail = (
            f"height x width {image.height} x {image.width}, but {layout.instances_path} says "
            f"{record.height} x {record.width}"
        )
        yield problem_of("image of another size", place, row, detail)
    loose = _loose_file(images, name)
    if loose is not None and digest_of(loose[1]) != digest:
        detail = "differs from its copy in the pack, which is read; run `l2l data pack`"
        yield problem_of("image file other than in the pack", loose[0], row, detail)


def _loose_file(images: ImageStore, name: str) -> tuple[Path, bytes] | None:
    """The loose file of an image that is read from a pack, if there is one that can be read."""
    if images.pack is None or name not in images.pack:
        return None
    try:
        path = images.path(name)
        return path, path.read_bytes()
    except (DataError, OSError):
        return None
