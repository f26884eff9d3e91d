"""Which samples are trained on with their mask, which without it, and which can be scored."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.refer import ReferringDataset
from shared.splits import labelled_from_file, labelled_image_ids, split_hash
from shared.types import Sample
from stage2_train.order import group_by_ref


@dataclass(frozen=True, kw_only=True)
class Split:
    """Labelled and unlabelled part of the training data, cut by image."""

    image_ids: tuple[int, ...]
    """Labelled images, in the order drawn."""
    labelled: tuple[tuple[Sample, ...], ...]
    """Labelled references, each with its sentences."""
    unlabelled: tuple[tuple[Sample, ...], ...]
    """The others."""

    def summary(self) -> dict[str, Any]:
        """Ids, their hash and counts, as written to `split.json`."""
        return {
            "image_ids": list(self.image_ids),
            "hash": split_hash(self.image_ids),
            "num_refs": len(self.labelled),
            "num_sentences": sum(map(len, self.labelled)),
            "num_unlabelled_refs": len(self.unlabelled),
            "num_unlabelled_sentences": sum(map(len, self.unlabelled)),
        }


def make_split(dataset: ReferringDataset, fraction: float, seed: int, ids_file: str = "") -> Split:
    """Cut the train split by image.

    A reference for which nobody has drawn a mask is unlabelled, whatever its image.

    Args:
        dataset: The data set.
        fraction: Share of the train images that are labelled, out of those that carry a mask at all.
        seed: Seed of the draw.
        ids_file: File of image ids or names (`shared.splits.labelled_from_file`) that replaces the draw; "" draws.

    Raises:
        DataError: No labelled image, an unreadable file, or an id or name of no train image.
    """
    known = dataset.drawn_image_ids()
    if not known:
        raise DataError("no train image carries a mask: draw some")
    if ids_file:
        names = dataset.image_names()
        image_ids = labelled_from_file(Path(ids_file), {image_id: names[image_id] for image_id in known})
    else:
        image_ids = labelled_image_ids(known, fraction, seed)
    chosen = set(image_ids)
    parts: dict[bool, list[tuple[Sample, ...]]] = {True: [], False: []}
    for ref in group_by_ref(dataset.samples("train")):
        parts[ref[0].image_id in chosen and dataset.has_mask(ref[0])].append(ref)
    return Split(image_ids=tuple(image_ids), labelled=tuple(parts[True]), unlabelled=tuple(parts[False]))


def scorable(dataset: ReferringDataset, split: str) -> list[Sample]:
    """The samples of a split that somebody has drawn a mask for.

    Raises:
        DataError: No such split, or no mask in it.
    """
    samples = [sample for sample in dataset.samples(split) if dataset.has_mask(sample)]
    if not samples:
        raise DataError(f"split {split!r} carries no mask: there is nothing to score")
    return samples
