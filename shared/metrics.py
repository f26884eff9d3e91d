"""Segmentation metrics over sentences.

One unit is one sentence: the intersection I and union U of predicted and true pixels, in whole pixels.

    oIoU = sum(I) / sum(U)                       (also printed as cIoU)
    mIoU = mean(I / U), an empty union counts 0  (also printed as gIoU)
    Pr@t = share of sentences with I / U >= t, t = 0.5, 0.6, 0.7, 0.8, 0.9

`>=` is the rule of the LAVT family's code. All results are fractions in [0, 1]. The resolution at which pixels were
counted is the caller's and must be printed beside the figures.
"""

import math
from typing import Any

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU thresholds of Pr@t."""


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


def iou(inter: int, union: int) -> float:
    """Intersection over union; 0 when the union is empty."""
    return inter / union if union else 0.0


class SegmentationMeter:
    """Collects one (I, U) per sentence, keyed by `sample_id`, so that none is dropped or counted twice.

    The result does not depend on the order of updates or on how the sentences were spread over processes.
    """

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, int]] = {}

    def update(self, sample_id: str, inter: int, union: int) -> None:
        """Add one sentence.

        Args:
            sample_id: `Sample.sample_id`; a second update with the same id is a bug.
            inter: Pixels in the intersection.
            union: Pixels in the union.
        """
        assert sample_id not in self.counts, f"{sample_id} counted twice"
        assert 0 <= inter <= union, f"{sample_id}: intersection {inter}, union {union}"
        self.counts[sample_id] = (int(inter), int(union))

    def merge(self, other: "SegmentationMeter") -> None:
        """Add the sentences of another meter; the two must share none."""
        for sample_id, (inter, union) in other.counts.items():
            self.update(sample_id, inter, union)

    def result(self) -> dict[str, float]:
        """`{"oiou", "miou", "pr@0.5", ..., "pr@0.9", "num"}`; at least one sentence must have been added."""
        assert self.counts, "no sentence was counted"
        ious = [iou(inter, union) for inter, union in self.counts.values()]
        total_inter = sum(inter for inter, _ in self.counts.values())
        total_union = sum(union for _, union in self.counts.values())
        result = {"oiou": iou(total_inter, total_union), "miou": math.fsum(ious) / len(ious)}
        for threshold in PRECISION_THRESHOLDS:
            result[f"pr@{threshold}"] = sum(value >= threshold for value in ious) / len(ious)
        result["num"] = len(ious)
        return result
