"""Check a data set before work is spent on it.

Counts what is there per split, reads every image that is referred to and every segmentation, compares with the
published sizes where they are known, and lists what is wrong by kind with the first rows of each. The loader refuses
what is wrong in the annotations (`shared.refer_layout`); this finds all of it at once, and what only bytes can show.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError, short
from shared.image_pack import ImageStore
from shared.images import image_orientation, read_image
from shared.layout import OWN_ROW, AnnotationRecord, ImageRecord, Layout, Problem, RefRecord
from shared.masks import polygon_overhang_px, rle_area, segmentation_rle
from shared.refer import ordered_splits
from shared.refer_layout import read_layout
from shared.runlog import progress as progress_over

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

NUM_FIRST_ROWS = 5
"""Rows of each kind of problem that the table shows."""

NUM_KEPT_ROWS = 1000
"""Rows kept of each kind of problem."""


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What one split holds."""

    images: int
    refs: int
    sentences: int


@dataclass(frozen=True, kw_only=True)
class KindOfProblem:
    """All problems of one kind."""

    kind: str
    count: int
    blocks: bool
    """Whether the loader refuses the data set because of it."""
    first: tuple[str, ...]
    """The first rows, one line each: file, row, value."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The outcome of `check_refer`."""

    root: str
    dataset: str
    split_by: str
    fingerprint: str
    splits: dict[str, SplitCounts]
    shared_images: dict[str, int]
    """Images that two splits share, by `"train/val"`; not a fault (RefCOCOg google is split by object)."""
    seen_sentences: dict[str, int]
    """Sentences of another split about images of train, by that split: of a user's own data alone, whose scores they
    spoil; only splits that have some."""
    unlabelled: dict[str, int]
    """Refs without a mask, by split; only splits that have some."""
    no_target: dict[str, int]
    """Refs that name nothing in their image, by split; only splits that have some."""
    turned: dict[str, int]
    """Images that are turned upright as they are read: EXIF's orientation by file name. Their masks may be of the
    pixels as stored; orientations 2 to 4 show in no size. Empty for a user's own data, whose masks are of the upright
    image."""
    published: dict[str, dict[str, int]]
    """Published sizes by split; empty where none are known."""
    problems: tuple[KindOfProblem, ...]
    images_read: bool
    """Whether image files were opened."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON-able object, with `ok`."""
        report = asdict(self)
        report["problems"] = [{**problem, "first": list(problem["first"])} for problem in report["problems"]]
        return {"ok": self.ok, **report}

    def format_table(self) -> str:
        """The report as text: a table of splits, then the problems."""
        lines = [f"{self.dataset} ({self.split_by}) in {self.root}", f"fingerprint {self.fingerprint}", ""]
        lines.append(f"{'split':<8}{'images':>8}{'refs':>8}{'sentences':>11}  published")
        for split, counts in self.splits.items():
            published = (
                ", ".join(f"{size} {what}" for what, size in self.published.get(split, {}).items()) or "-"
            )
            lines.append(f"{split:<8}{counts.images:>8}{counts.refs:>8}{counts.sentences:>11}  {published}")
        for pair, num in self.shared_images.items():
            lines.append(f"note: {pair} share {num} images{self._spoilt(pair)}")
        for split, num in self.unlabelled.items():
            lines.append(f"note: {split}: {num} of {self.splits[split].refs} refs carry no mask")
        for split, num in self.no_target.items():
            lines.append(
                f"note: {split}: {num} of {self.splits[split].refs} refs name nothing in their image"
            )
        if self.turned:
            first = ", ".join(f"{name} ({how})" for name, how in list(self.turned.items())[:NUM_FIRST_ROWS])
            lines.append(
                f"note: {len(self.turned)} images are turned upright by their EXIF orientation, masks are not: {first}"
            )
        if not self.images_read:
            lines.append("note: image files were not opened")
        lines.append("")
        if self.ok:
            lines.append("no problems")
        for problem in self.problems:
            lines.append(
                f"{problem.count} x {problem.kind}{' (the loader refuses this)' if problem.blocks else ''}"
            )
            lines.extend(f"    {line}" for line in problem.first[:NUM_FIRST_ROWS])
            if problem.count > NUM_FIRST_ROWS:
                lines.append(f"    ... {problem.count - NUM_FIRST_ROWS} more (--json lists them)")
        return "\n".join(lines)

    def _spoilt(self, pair: str) -> str:
        """What images that two splits share do to scores."""
        split = pair.removeprefix("train/")
        if split == pair or split not in self.seen_sentences:
            return ""
        return (
            f": scores on the {self.seen_sentences[split]} of {self.splits[split].sentences} sentences of {split} "
            "that are about them are not to be trusted"
        )


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
    turned: dict[str, int] = {}
    if read_images:
        found, turned = _look_at_images(layout, progress)
        problems.extend(found)
    return CheckReport(
        root=str(layout.root),
        dataset=layout.dataset,
        split_by=layout.split_by,
        fingerprint=layout.fingerprint,
        splits=counts,
        shared_images=_shared_images(layout.refs),
        seen_sentences=_seen_sentences(layout.refs) if layout.row_name == OWN_ROW else {},
        unlabelled=_by_split(
            ref for ref in layout.refs if layout.annotations[ref.ann_id].segmentation is None
        ),
        no_target=_by_split(ref for ref in layout.refs if ref.no_target),
        turned=turned if layout.row_name != OWN_ROW else {},
        published=published,
        problems=_by_kind(problems),
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


def _shared_images(refs: list[RefRecord]) -> dict[str, int]:
    image_ids: dict[str, set[int]] = {}
    for ref in refs:
        image_ids.setdefault(ref.split, set()).add(ref.image_id)
    names = ordered_splits(image_ids.keys())
    pairs = [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]
    return {f"{a}/{b}": len(image_ids[a] & image_ids[b]) for a, b in pairs if image_ids[a] & image_ids[b]}


def _seen_sentences(refs: list[RefRecord]) -> dict[str, int]:
    """Lines of other splits about images of train, by split; a line is a sentence."""
    trained = {ref.image_id for ref in refs if ref.split == "train"}
    return _by_split(ref for ref in refs if ref.split != "train" and ref.image_id in trained)


def _by_split(refs: Iterable[RefRecord]) -> dict[str, int]:
    counts = Counter(ref.split for ref in refs)
    return {split: counts[split] for split in ordered_splits(counts.keys())}


def _size_problems(
    layout: Layout, counts: dict[str, SplitCounts], published: dict[str, dict[str, int]]
) -> Iterator[Problem]:
    if not counts:
        yield _problem("no refs", layout.refs_path, "", "holds no sound ref")
    for split, sizes in published.items():
        found = asdict(counts[split]) if split in counts else {"images": 0, "refs": 0, "sentences": 0}
        for what, size in sizes.items():
            if found[what] != size:
                detail = f"{found[what]} {what} where {size} were published"
                yield _problem("not the published size", layout.refs_path, f"split {split}", detail)


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
                yield _problem("pair given twice", layout.refs_path, f"{OWN_ROW} {ref.ref_id}", detail)


def _mask_problems(layout: Layout, progress: bool) -> Iterator[Problem]:
    """Rasterise the segmentation of every annotation that is referred to and has one."""
    needed = dict.fromkeys(ref.ann_id for ref in layout.refs if not ref.no_target)
    for ann_id in _progress(needed, "masks", progress):
        annotation = layout.annotations[ann_id]
        if annotation.segmentation is None:
            continue
        fault = _mask_fault(annotation, layout.images[annotation.image_id])
        if fault:
            yield _problem(fault[0], layout.instances_path, f"{layout.row_name} {ann_id}", fault[1])


def _mask_fault(annotation: AnnotationRecord, image: ImageRecord) -> tuple[str, str] | None:
    """(kind, detail) of what is wrong with a segmentation, or None."""
    segmentation, size = annotation.segmentation, f"its image of {image.height} x {image.width}"
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    for part in parts:
        if isinstance(part, dict) and part.get("size") not in ([image.height, image.width], None):
            return "mask not of its image's size", f"RLE of size {str(part['size'])[:60]} for {size}"
    try:
        rle = segmentation_rle(segmentation, image.height, image.width)
    except DataError as error:
        return "malformed segmentation", str(error)
    overhang = polygon_overhang_px(segmentation, image.height, image.width)
    if overhang > MAX_OVERHANG_PX:
        return "mask larger than its image", f"a polygon lies {overhang:.1f} px outside {size}"
    if rle_area(rle) == 0:
        return "mask of no area", "its segmentation covers no pixel"
    return None


def _look_at_images(layout: Layout, progress: bool) -> tuple[list[Problem], dict[str, int]]:
    """Decode every image that is referred to: what is wrong, and the EXIF orientation of those that are turned."""
    images = ImageStore(layout.root, layout.image_folders)
    problems, turned = list[Problem](), dict[str, int]()
    for image_id in _progress(dict.fromkeys(ref.image_id for ref in layout.refs), "images", progress):
        record = layout.images[image_id]
        try:
            place = images.place(record.file_name)
        except DataError as error:
            problems.append(
                _problem("missing image file", layout.instances_path, f"image {image_id}", str(error))
            )
            continue
        try:
            data = images.data(record.file_name)
            image = read_image(place, data)
            orientation = image_orientation(place, data)
        except DataError as error:
            detail = str(error).removeprefix(f"{place}: ")
            problems.append(_problem("unreadable image file", place, f"image {image_id}", detail))
            continue
        if orientation != 1:
            turned[record.file_name] = orientation
        if image.size != (record.width, record.height):
            detail = (
                f"height x width {image.height} x {image.width}, but {layout.instances_path} says "
                f"{record.height} x {record.width}"
            )
            problems.append(_problem("image of another size", place, f"image {image_id}", detail))
    return problems, turned


def _problem(kind: str, file: Path | str, row: str, detail: str) -> Problem:
    """A problem of contents, which the loader meets only on access."""
    return Problem(kind=kind, file=str(file), row=row, detail=detail, blocks=False)


def _by_kind(problems: list[Problem]) -> tuple[KindOfProblem, ...]:
    """Kinds in order of their first problem."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    return tuple(
        KindOfProblem(
            kind=kind,
            count=len(found),
            blocks=any(problem.blocks for problem in found),
            first=tuple(problem.line for problem in found[:NUM_KEPT_ROWS]),
        )
        for kind, found in kinds.items()
    )


def _progress(rows: dict[int, None], what: str, progress: bool) -> Any:
    return progress_over(rows, len(rows), f"checking {what}", quiet=not progress, unit=what[:-1])
