"""Segmentation metrics over sentences.

One unit is one sentence: the intersection I and union U of predicted and true pixels, in whole pixels.

    oIoU = sum(I) / sum(U)                       (also printed as cIoU)
    mIoU = mean(I / U), an empty union counts 0  (also printed as gIoU)
    Pr@t = share of sentences with I / U >= t, t = 0.5, 0.6, 0.7, 0.8, 0.9

A sentence that names nothing in its image (gRefCOCO's "no target") has an empty true mask by definition: an empty
prediction is right and counts 1, any other counts 0; its U enters oIoU like any other. `no_target_acc` is the share
of them predicted empty. The empty union of an ordinary sentence is a fault of its annotation and counts 0.

`>=` is the rule of the LAVT family's code. All results are fractions in [0, 1]. The resolution at which pixels were
counted is the caller's and must be printed beside the figures.
"""

import math
from typing import Any

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU thresholds of Pr@t."""

LENGTH_BUCKETS: tuple[tuple[str, int], ...] = (
    ("1-2", 2),
    ("3-4", 4),
    ("5-7", 7),
    ("8-11", 11),
    ("12+", 10**9),
)
"""Name and largest number of words of each bucket of sentences."""


def iou_counts(pred_bool: Any, true_bool: Any) -> tuple[int, int]:
    """Pixels in the intersection and in the union of two boolean masks.

    Args:
        pred_bool: Boolean array or tensor, any shape.
        true_bool: The same shape and kind.
    """
    assert str(pred_bool.dtype).endswith("bool") and str(true_bool.dtype).endswith("bool"), (
        "masks must be boolean"
    )
    assert tuple(pred_bool.shape) == tuple(true_bool.shape), f"{pred_bool.shape} against {true_bool.shape}"
    return int((pred_bool & true_bool).sum()), int((pred_bool | true_bool).sum())


def iou(inter: int, union: int, no_target: bool = False) -> float:
    """Intersection over union; when the union is empty, 1 for a sentence without a target and 0 for any other."""
    return inter / union if union else float(no_target)


class SegmentationMeter:
    """Collects one (I, U) per sentence, keyed by `sample_id`, so that none is dropped or counted twice.

    The result does not depend on the order of updates.
    """

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, int]] = {}
        self.no_target: set[str] = set()

    def update(self, sample_id: str, inter: int, union: int, no_target: bool = False) -> None:
        """Add one sentence.

        Args:
            sample_id: `Sample.sample_id`; a second update with the same id is a bug.
            inter: Pixels in the intersection.
            union: Pixels in the union.
            no_target: Whether the sentence names nothing in its image.
        """
        assert sample_id not in self.counts, f"{sample_id} counted twice"
        assert 0 <= inter <= union, f"{sample_id}: intersection {inter}, union {union}"
        assert not (no_target and inter), f"{sample_id}: no target, but an intersection of {inter}"
        self.counts[sample_id] = (int(inter), int(union))
        if no_target:
            self.no_target.add(sample_id)

    def result(self) -> dict[str, float]:
        """`{"oiou", "miou", "pr@0.5", ..., "pr@0.9", "num"}`; at least one sentence must have been added.

        Where there are sentences without a target also `num_no_target` and `no_target_acc`.
        """
        assert self.counts, "no sentence was counted"
        ious = [iou(*counts, sample_id in self.no_target) for sample_id, counts in self.counts.items()]
        total_inter = sum(inter for inter, _ in self.counts.values())
        total_union = sum(union for _, union in self.counts.values())
        result = {"oiou": iou(total_inter, total_union), "miou": math.fsum(ious) / len(ious)}
        for threshold in PRECISION_THRESHOLDS:
            result[f"pr@{threshold}"] = sum(value >= threshold for value in ious) / len(ious)
        result["num"] = len(ious)
        if self.no_target:
            right = sum(self.counts[sample_id][1] == 0 for sample_id in self.no_target)
            result |= {"num_no_target": len(self.no_target), "no_target_acc": right / len(self.no_target)}
        return result
