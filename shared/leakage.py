"""Images that training data share with splits that are scored.

RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO are drawn from the same COCO images and split independently, so one's train
split holds images of another's val and test. A network trained, or pretrained, on several of them has seen what it is
scored on. Images are compared by COCO image id.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.refer import require_sound
from shared.refer_layout import read_layout
from shared.split_names import TRAIN, ordered_splits
from shared.splits import read_id_file

NOT_COCO = ("refclef",)
"""Data sets of other images, whose ids mean something else."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Images shared by what is trained on and one split that is scored."""

    trained: str
    """`<dataset>(<split_by>) train`, or the name of an id file."""
    scored: str
    """`<dataset>(<split_by>) <split>`."""
    shared: int
    """Images in both."""
    images: int
    """Images of the scored split."""

    @property
    def share(self) -> float:
        """Part of the scored split's images that were trained on."""
        return self.shared / self.images


def leakage(root: str | Path, datasets: Collection[str], id_files: Collection[Path] = ()) -> list[Overlap]:
    """Compare every train split, and every id file, with every other split of every data set.

    Args:
        root: Folder in the REFER layout.
        datasets: `<dataset>:<split_by>` each, for example `refcoco:unc`.
        id_files: Files of image ids (`shared.splits.read_id_file`), for example those a network was pretrained on.

    Returns:
        One entry a pair, zeros included, train splits first; in the order given.

    Raises:
        DataError: Unreadable data or ids, a name not of that form, or a data set that does not consist of COCO images.
    """
    trained: dict[str, frozenset[int]] = {}
    scored: dict[str, frozenset[int]] = {}
    for name in dict.fromkeys(datasets):
        for split, ids in _image_ids(root, name).items():
            (trained if split.endswith(f" {TRAIN}") else scored)[split] = ids
    trained |= {str(path): frozenset(read_id_file(path)) for path in id_files}
    if not trained or not scored:
        raise DataError(
            f"{', '.join(datasets)}: nothing to compare: a train split or id file, and a split that is scored"
        )
    return [
        Overlap(trained=seen, scored=split, shared=len(trained[seen] & ids), images=len(ids))
        for seen in trained
        for split, ids in scored.items()
    ]


def _image_ids(root: str | Path, name: str) -> Mapping[str, frozenset[int]]:
    dataset, colon, split_by = name.partition(":")
    if not colon or not dataset or not split_by:
        raise DataError(f"{name!r} is not of the form DATASET:SPLIT_BY, for example refcoco:unc")
    if dataset in NOT_COCO:
        raise DataError(f"{name}: its images are not COCO's; ids cannot be compared")
    ids: dict[str, set[int]] = {}
    for ref in require_sound(read_layout(root, dataset, split_by)).refs:
        ids.setdefault(ref.split, set()).add(ref.image_id)
    return {f"{dataset}({split_by}) {split}": frozenset(ids[split]) for split in ordered_splits(ids.keys())}


def leakage_table(overlaps: Collection[Overlap]) -> str:
    """One line a pair that shares an image, and how many pairs share none."""
    found = [overlap for overlap in overlaps if overlap.shared]
    widths = [max((len(getattr(o, field)) for o in found), default=0) for field in ("trained", "scored")]
    lines = (
        [f"{'trained on':<{widths[0]}}  {'scored on':<{widths[1]}}{'shared':>8}{'of':>8}{'share':>9}"]
        if found
        else []
    )
    for o in found:
        lines.append(
            f"{o.trained:<{widths[0]}}  {o.scored:<{widths[1]}}{o.shared:>8}{o.images:>8}{o.share:>9.1%}"
        )
    return "\n".join([*lines, f"{len(overlaps) - len(found)} of {len(overlaps)} pairs share no image"])


def leakage_records(overlaps: Collection[Overlap]) -> dict[str, Any]:
    """The same, JSON-able."""
    rows = [
        {"trained": o.trained, "scored": o.scored, "shared": o.shared, "images": o.images, "share": o.share}
        for o in overlaps
    ]
    return {"ok": not any(o.shared for o in overlaps), "pairs": rows}
