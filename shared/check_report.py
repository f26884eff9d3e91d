"""What a check of a data set has found, as a table for people and as JSON.

`shared.refer_check` fills it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.images import DIM_BITS
from shared.layout import Problem
from shared.split_names import TRAIN

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
    """Images that two splits share, by `"train/val"`; not a fault (RefCOCOg google is split by object). Copies of an
    image, under whatever name, are that image where image files were opened."""
    seen_sentences: dict[str, int]
    """Sentences of another split about images of train, by that split: of a user's own data alone, whose scores they
    spoil; only splits that have some."""
    unlabelled: dict[str, int]
    """Refs without a mask, by split; only splits that have some."""
    no_target: dict[str, int]
    """Refs that name nothing in their image, by split; only splits that have some."""
    turned: dict[str, int]
    """Images that are turned upright as they are read: EXIF's orientation by file name. Their masks, boxes and points
    may be of the pixels as stored, which most often shows in no size. Of a user's own data those that carry one."""
    copies: dict[str, str]
    """Images whose file is, byte for byte, that of another one: name and id, and those of the first such image."""
    dim: dict[str, int]
    """Images of 16-bit grey that use 12 bits or fewer, and so become next to black: brightest value by file name."""
    unusual_splits: dict[str, str]
    """Names of splits that are nearly a usual one, and that one; nothing reads them as that."""
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
                f"note: {len(self.turned)} images are turned upright by their EXIF orientation, what was drawn on them "
                f"is not: {first}"
            )
        if self.copies:
            first = ", ".join(
                f"{one} as {other}" for one, other in list(self.copies.items())[:NUM_FIRST_ROWS]
            )
            lines.append(f"note: {len(self.copies)} images are copies of others, byte for byte: {first}")
        if self.dim:
            first = ", ".join(f"{name} ({peak})" for name, peak in list(self.dim.items())[:NUM_FIRST_ROWS])
            lines.append(
                f"note: {len(self.dim)} images of 16-bit grey use {DIM_BITS} bits or fewer and are read as next to "
                f"black (brightest value): {first}"
            )
        for name, usual in self.unusual_splits.items():
            lines.append(f"note: split {name!r} is not read as {usual!r}; rename it if that is meant")
        if self.splits and TRAIN not in self.splits:
            lines.append(f"note: no split {TRAIN!r}: there is nothing to learn from, only to score")
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


def problem_of(kind: str, file: Path | str, row: str, detail: str) -> Problem:
    """A problem of contents, which the loader meets only on access."""
    return Problem(kind=kind, file=str(file), row=row, detail=detail, blocks=False)


def by_kind(problems: list[Problem]) -> tuple[KindOfProblem, ...]:
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
