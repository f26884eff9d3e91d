"""Boxes sampled besides the greedy one: how much the model agrees with itself.

A second confidence, from what the model says when asked several times instead of from the probabilities of its tokens.
It also sees doubt between objects, which the distributions around one box cannot show.

Legend: B rows, S samples.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from stage1_priors.answers import box_iou
from stage1_priors.engine import Answer
from stage1_priors.families.family import Family, box_to_norm


def read_samples(
    answers: Sequence[Answer | None],
    processed_hw_B2: np.ndarray,
    family: Family,
    num_samples: int,
    clip_tolerance: float,
) -> dict[str, np.ndarray]:
    """The store's columns for the sampled answers of a batch; none if none are asked for.

    Args:
        answers: B answers; None where the model was not asked.
        processed_hw_B2: int [B, 2], size of the image the model saw.
        family: Gives notation and frame of the numbers.
        num_samples: S.
        clip_tolerance: As for the greedy answer.

    Returns:
        `sample_box_xyxy_norm`, float32 [B, S, 4], NaN for a sample without a usable box, and `sample_iou`,
        float32 [B], NaN where there is no answer.
    """
    if not num_samples:
        return {}
    box_BS4 = np.full((len(answers), num_samples, 4), np.nan, np.float32)
    iou_B = np.full(len(answers), np.nan, np.float32)
    for row, answer in enumerate(answers):
        if answer is None or answer.error is not None:
            continue
        assert len(answer.samples) == num_samples, (
            f"{len(answer.samples)} samples where {num_samples} were asked for"
        )
        frame_hw = family.answer_frame_hw((int(processed_hw_B2[row, 0]), int(processed_hw_B2[row, 1])))
        for index, (text, finish_reason) in enumerate(answer.samples):
            parsed = family.parse(text, frame_hw, finish_reason, clip_tolerance)
            if parsed.box_xyxy is not None:
                box_BS4[row, index] = box_to_norm(np.array([parsed.box_xyxy]), np.array([frame_hw]))[0]
        iou_B[row] = mean_pairwise_iou(box_BS4[row])
    return {"sample_box_xyxy_norm": box_BS4, "sample_iou": iou_B}


def mean_pairwise_iou(box_S4: np.ndarray) -> float:
    """Mean IoU over all pairs of boxes, S >= 2; a pair with a NaN box counts 0."""
    first, second = np.array(list(combinations(range(len(box_S4)), 2))).T
    return float(box_iou(box_S4[first], box_S4[second]).mean())
