"""Check a data set before work is spent on it.

Counts what is there per split, reads every image that is referred to and every segmentation, compares with the
published sizes where they are known, and lists what is wrong by kind with the first rows of each. The loader refuses
what is wrong in the annotations (`shared.refer_layout`); this finds all of it at once, and what only bytes can show.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.check_images import ImageFindings, copies_by_name, look_at_images
from shared.check_report import CheckReport, SplitCounts, by_kind, problem_of
from shared.errors import DataError, short
from shared.json_files import is_finite_number
from shared.layout import OWN_ROW, AnnotationRecord, ImageRecord, Layout, Problem, RefRecord
from shared.masks import UPRIGHT, polygon_overhang_px, rle_area, segmentation_rle, swapped_hint
from shared.refer_layout import read_layout
from shared.runlog import progress as progress_over
from shared.split_names import TRAIN, ordered_splits, usual_split

PUBLISHED_SIZES: dict[tuple[str, str], dict[str, dict[str, int]]] = {
    ("refcoco", "unc"): {
        "train": {"images": 16994, "refs": 42404},
        "val": {"sentences": 10834},
        "testA": {"sentences": 5657},
        "testB": {"sentences": 5095},
    },
    ("refcoco+", "unc"): {
        "val": {"sentences": 10758},
        "testA": {"sentences": 5726},
        "testB": {"sentences": 4889},
    },
    ("refcocog", "umd"): {"val": {"sentences": 4896}, "test": {"sentences": 9602}},
}
"""Sizes as published, by (dataset, split_by) and split."""

MAX_OVERHANG_PX = 1.0
"""Polygons may leave the image by this much; annotation tools round corners on the border outwards."""


def check_refer(
    root: str | Path, dataset: str, split_by: str, *, read_images: bool = True, progress: bool = True
) -> CheckReport:
    """Check a data set.

    Args:
        root: Folder that holds `images/` and `<dataset>/`.
        dataset: For example `refcoco`.
        split_by: For example `unc`.
        read_images: Decode every image that is referred to (most of the time a large set takes).
        progress: Show progress on standard error.

    Raises:
        DataError: An annotation file is missing or cannot be read at all.
    """
    return check_layout(read_layout(root, dataset, split_by), read_images=read_images, progress=progress)


def check_layout(layout: Layout, *, read_images: bool = True, progress: bool = True) -> CheckReport:
    """Check annotations that have been read, and what they refer to; arguments as of `check_refer`."""
    published = PUBLISHED_SIZES.get((layout.dataset, layout.split_by), {})
    counts = _count(layout.refs)
    problems = list(layout.problems)
    problems.extend(_size_problems(layout, counts, published))
    if layout.row_name == OWN_ROW:
        problems.extend(_repetitions(layout))
    problems.extend(_mask_problems(layout, progress))
    problems.extend(_normalised(layout))
    found = ImageFindings()
    if read_images:
        found = look_at_images(layout, dict.fromkeys(ref.image_id for ref in layout.refs), progress)
        problems.extend(found.problems)
    own = layout.row_name == OWN_ROW
    return CheckReport(
        root=str(layout.root),
        dataset=layout.dataset,
        split_by=layout.split_by,
        fingerprint=layout.fingerprint,
        splits=counts,
        shared_images=_shared_images(layout.refs, found.first_of),
        seen_sentences=_seen_sentences(layout.refs, found.first_of) if own else {},
        unlabelled=_by_split(
            ref for ref in layout.refs if layout.annotations[ref.ann_id].segmentation is None
        ),
        no_target=_by_split(ref for ref in layout.refs if ref.no_target),
        turned=_drawn_on(layout, found.turned) if own else found.turned,
        copies=copies_by_name(layout, found.first_of),
        dim=found.dim,
        unusual_splits={name: usual_split(name) for name in counts if usual_split(name) != name},
        published=published,
        problems=by_kind(problems),
        images_read=read_images,
    )


def _count(refs: list[RefRecord]) -> dict[str, SplitCounts]:
    counts = {}
    for split in ordered_splits({ref.split for ref in refs}):
        chosen = [ref for ref in refs if ref.split == split]
        counts[split] = SplitCounts(
            images=len({ref.image_id for ref in chosen}),
            refs=len(chosen),
            sentences=sum(len(ref.sentences) for ref in chosen),
        )
    return counts


def _shared_images(refs: list[RefRecord], first_of: Mapping[int, int]) -> dict[str, int]:
    image_ids: dict[str, set[int]] = {}
    for ref in refs:
        image_ids.setdefault(ref.split, set()).add(first_of.get(ref.image_id, ref.image_id))
    names = ordered_splits(image_ids.keys())
    pairs = [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]
    return {f"{a}/{b}": len(image_ids[a] & image_ids[b]) for a, b in pairs if image_ids[a] & image_ids[b]}


def _seen_sentences(refs: list[RefRecord], first_of: Mapping[int, int]) -> dict[str, int]:
    """Lines of other splits about images of train, by split; a line is a sentence."""
    first = {ref.image_id: first_of.get(ref.image_id, ref.image_id) for ref in refs}
    trained = {first[ref.image_id] for ref in refs if ref.split == TRAIN}
    return _by_split(ref for ref in refs if ref.split != TRAIN and first[ref.image_id] in trained)


def _drawn_on(layout: Layout, found: Mapping[str, int]) -> dict[str, int]:
    """Those of some images, by file name, on which a mask, a box or a point has been drawn."""
    drawn = set()
    for ref in layout.refs:
        annotation = layout.annotations[ref.ann_id]
        has_mask = annotation.segmentation is not None and not ref.no_target
        if has_mask or annotation.box_xywh_px is not None or annotation.point_xy_px is not None:
            drawn.add(layout.images[ref.image_id].file_name)
    return {name: how for name, how in found.items() if name in drawn}


def _by_split(refs: Iterable[RefRecord]) -> dict[str, int]:
    counts = Counter(ref.split for ref in refs)
    return {split: counts[split] for split in ordered_splits(counts.keys())}


def _size_problems(
    layout: Layout, counts: dict[str, SplitCounts], published: dict[str, dict[str, int]]
) -> Iterator[Problem]:
    if not counts:
        yield problem_of("no refs", layout.refs_path, "", "holds no sound ref")
    for split, sizes in published.items():
        found = asdict(counts[split]) if split in counts else {"images": 0, "refs": 0, "sentences": 0}
        for what, size in sizes.items():
            if found[what] != size:
                detail = f"{found[what]} {what} where {size} were published"
                yield problem_of("not the published size", layout.refs_path, f"split {split}", detail)


def _repetitions(layout: Layout) -> Iterator[Problem]:
    """Lines of a user's own data that say of an image what a line above says; published data sets have such pairs."""
    above: dict[tuple[int, str], RefRecord] = {}
    for ref in layout.refs:
        for _, expression in ref.sentences:
            first = above.setdefault((ref.image_id, expression.lower()), ref)
            if first is not ref:
                detail = (
                    f"{short(expression)} of {layout.images[ref.image_id].file_name} ({ref.split}), as "
                    f"{OWN_ROW} {first.ref_id} ({first.split})"
                )
                yield problem_of("pair given twice", layout.refs_path, f"{OWN_ROW} {ref.ref_id}", detail)


def _mask_problems(layout: Layout, progress: bool) -> Iterator[Problem]:
    """Rasterise the segmentation of every annotation that is referred to and has one."""
    needed = dict.fromkeys(ref.ann_id for ref in layout.refs if not ref.no_target)
    for ann_id in progress_over(needed, len(needed), "checking masks", quiet=not progress, unit="mask"):
        annotation = layout.annotations[ann_id]
        if annotation.segmentation is None:
            continue
        fault = _mask_fault(annotation, layout.images[annotation.image_id])
        if fault:
            yield problem_of(fault[0], layout.instances_path, f"{layout.row_name} {ann_id}", fault[1])


def _normalised(layout: Layout) -> Iterator[Problem]:
    """Boxes, points and polygons that look as if they were shares of the image."""
    for ann_id in dict.fromkeys(ref.ann_id for ref in layout.refs):
        annotation = layout.annotations[ann_id]
        drawn = annotation.segmentation if isinstance(annotation.segmentation, list) else []
        polygons = [part for part in drawn if isinstance(part, list)]
        for what, numbers in (
            ("box", annotation.box_xywh_px),
            ("point", annotation.point_xy_px),
            ("polygon", [number for polygon in polygons for number in polygon]),
        ):
            if numbers and _are_shares(numbers):
                detail = f"{what} {short(list(numbers))} looks normalised; pixels are expected"
                yield problem_of(
                    "normalised coordinates", layout.instances_path, f"{layout.row_name} {ann_id}", detail
                )


def _are_shares(numbers: Sequence[Any]) -> bool:
    """Whether numbers are all within -1..1, and not all whole."""
    if not all(map(is_finite_number, numbers)):
        return False  # said as a malformed segmentation
    return all(abs(number) <= 1 for number in numbers) and any(number != int(number) for number in numbers)


def _mask_fault(annotation: AnnotationRecord, image: ImageRecord) -> tuple[str, str] | None:
    """(kind, detail) of what is wrong with a segmentation, or None."""
    segmentation, size = annotation.segmentation, f"its image of {image.height} x {image.width}"
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    for part in parts:
        if isinstance(part, dict) and part.get("size") not in ([image.height, image.width], None):
            hint = swapped_hint(part["size"], image.height, image.width)
            return "mask not of its image's size", f"RLE of size {str(part['size'])[:60]} for {size}{hint}"
    try:
        rle = segmentation_rle(segmentation, image.height, image.width)
    except DataError as error:
        return "malformed segmentation", str(error)
    overhang = polygon_overhang_px(segmentation, image.height, image.width)
    if overhang > MAX_OVERHANG_PX:
        turned = polygon_overhang_px(segmentation, image.width, image.height) <= MAX_OVERHANG_PX
        hint = f"; with the sides swapped it lies inside: {UPRIGHT}" if turned else ""
        return "mask larger than its image", f"a polygon lies {overhang:.1f} px outside {size}{hint}"
    if rle_area(rle) == 0:
        return "mask of no area", "its segmentation covers no pixel"
    return None
