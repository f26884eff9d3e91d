"""Pseudo-labels of unlabelled samples: the record of what was taught, and what cuts and compares them.

Legend: B samples, H W model input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.types import Sample
from stage2_train.batch import UnlabelledPart
from stage2_train.losses import IGNORE


@dataclass(frozen=True, kw_only=True)
class Pseudo:
    """What a method makes of the unlabelled samples of a micro-batch, for the log and for export."""

    samples: tuple[Sample, ...]
    """The samples."""
    flip_B: Tensor
    """Bool: mirrored."""
    weak_B1HW: Tensor
    """Pw."""
    prior_B1HW: Tensor | None
    """P†, where the method reads one."""
    target_B1HW: Tensor
    """The map that pseudo-labels were cut from."""
    label_BHW: Tensor
    """int64 in {0, 1, IGNORE}."""


def pseudo_of(
    part: UnlabelledPart,
    weak_B1HW: Tensor,
    label_BHW: Tensor,
    target_B1HW: Tensor | None = None,
    prior_B1HW: Tensor | None = None,
) -> Pseudo:
    """The record of some samples: labels were cut from Pw unless a target is given; a prior is one that was read."""
    return Pseudo(
        samples=part.samples,
        flip_B=part.flip_B,
        weak_B1HW=weak_B1HW,
        prior_B1HW=prior_B1HW,
        target_B1HW=weak_B1HW if target_B1HW is None else target_B1HW,
        label_BHW=label_BHW,
    )


def confident_label(prob_B1HW: Tensor, threshold: float) -> Tensor:
    """int64 [B,H,W]: 1 where p >= threshold, 0 where 1-p >= threshold, IGNORE elsewhere (0.5 counts as 1)."""
    prob_BHW = prob_B1HW[:, 0]
    label_BHW = torch.full(prob_BHW.shape, IGNORE, dtype=torch.int64, device=prob_BHW.device)
    label_BHW[1.0 - prob_BHW >= threshold] = 0
    label_BHW[prob_BHW >= threshold] = 1
    return label_BHW


def foreground_prob(logit_B2HW: Tensor) -> Tensor:
    """f32 [B,H,W]: the foreground probability of logits, detached."""
    return logit_B2HW.detach().float().softmax(1)[:, 1]


def mask_iou(a_BHW: Tensor, b_BHW: Tensor) -> Tensor:
    """f32 [B]: IoU of boolean masks; two empty masks, which agree on nothing found, have 0."""
    inter_B = (a_BHW & b_BHW).flatten(1).sum(1)
    union_B = (a_BHW | b_BHW).flatten(1).sum(1)
    return inter_B / union_B.clamp(min=1)
