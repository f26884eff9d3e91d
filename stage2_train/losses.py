"""Losses on two-class logits.

Axes: B samples, H x W pixels. Labels are int64 with 0 background, 1 foreground and `IGNORE` for pixels that do not
count. Every loss returns `(loss_B, metrics)`: each sample's own loss, which carries gradient, and detached figures [B]
for the log; `mean_over_samples` makes scalars of them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import DataError
from stage2_train.constants import constant

IGNORE = 255
"""Label of a pixel that does not count."""

CLASS_WEIGHTS = (0.5, 1.5)
"""Cross-entropy weights of background and foreground on labelled data."""


@dataclass(frozen=True, kw_only=True)
class UnsupervisedLossConfig:
    """Loss on pseudo-labels."""

    ce_weight: float = 0.7
    """Weight of the cross-entropy on selected pixels."""
    dice_weight: float = 0.3
    """Weight of the Dice loss on confident foreground."""
    class_weights: tuple[float, float] = (1.0, 1.0)
    """Cross-entropy weights of background and foreground. On pseudo-labels unequal ones feed on themselves."""
    dice_smooth: float = 1.0
    """Added to numerator and denominator of Dice, pixels."""
    mean_over: Literal["selected", "all"] = "selected"
    """Pixels that the loss of a sample is a mean over; under `all`, few selected ones mean a small loss, as in the
    released code of AugSeg and Omni-RES."""

    def __post_init__(self) -> None:
        """Check signs and choices."""
        if self.mean_over not in ("selected", "all"):
            raise DataError(f"unsupervised loss: mean_over is {self.mean_over!r}, not selected or all")
        if min(self.ce_weight, self.dice_weight, *self.class_weights) < 0 or self.dice_smooth <= 0:
            raise DataError(
                "unsupervised loss: weights must not be negative and dice_smooth must be positive"
            )


def supervised_loss(
    logit_B2HW: Tensor, mask_BHW: Tensor, weights: tuple[float, float] = CLASS_WEIGHTS
) -> tuple[Tensor, dict[str, Tensor]]:
    """Class-weighted cross-entropy: of each sample the weighted mean over its pixels that are not ignored.

    Args:
        logit_B2HW: Network output.
        mask_BHW: int64 labels.
        weights: Background and foreground weight.

    Returns:
        Loss and metrics (`ce`, `accuracy`), [B] each. A sample without any labelled pixel has 0 and zero gradient.
    """
    counted_BHW = mask_BHW != IGNORE
    weight_2 = constant(weights, logit_B2HW)
    ce_BHW = F.cross_entropy(logit_B2HW, mask_BHW, weight=weight_2, ignore_index=IGNORE, reduction="none")
    total_BHW = weight_2.to(ce_BHW.dtype)[torch.where(counted_BHW, mask_BHW, 0)] * counted_BHW
    ce_B = _sum(ce_BHW) / _sum(total_BHW).clamp(min=1e-12)
    right_BHW = (logit_B2HW.detach().argmax(dim=1) == mask_BHW) & counted_BHW
    return ce_B, {"ce": ce_B.detach(), "accuracy": _sum(right_BHW) / _sum(counted_BHW).clamp(min=1)}


def unsupervised_loss(
    logit_B2HW: Tensor,
    label_BHW: Tensor,
    config: UnsupervisedLossConfig,
    pixel_weight_BHW: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of each sample `ce_weight` * cross-entropy on selected pixels + `dice_weight` * Dice on confident foreground.

    Args:
        logit_B2HW: Strong-view output.
        label_BHW: int64 pseudo-labels; `IGNORE` is not selected.
        config: Weights.
        pixel_weight_BHW: Optional quality of each pixel's label, float >= 0. The cross-entropy stays a mean over the
            number of pixels (`mean_over`), so that lower quality means a smaller loss; Dice takes a sample's mean
            weight over the same pixels.

    Returns:
        Loss and metrics (`ce`, `dice`), [B] each. A sample of which nothing is selected has 0 and zero gradient.
    """
    selected_BHW = label_BHW != IGNORE
    target_BHW = torch.where(selected_BHW, label_BHW, 0)
    ce_BHW = F.cross_entropy(
        logit_B2HW, target_BHW, weight=constant(config.class_weights, logit_B2HW), reduction="none"
    )
    weight_BHW = selected_BHW.to(ce_BHW.dtype)
    if pixel_weight_BHW is not None:
        weight_BHW = weight_BHW * pixel_weight_BHW
    counted_BHW = torch.ones_like(selected_BHW) if config.mean_over == "all" else selected_BHW
    counted_B = _sum(counted_BHW).clamp(min=1)
    ce_B = _sum(ce_BHW * weight_BHW) / counted_B
    dice_B = _foreground_dice(logit_B2HW, label_BHW, config.dice_smooth) * _sum(weight_BHW) / counted_B
    loss_B = config.ce_weight * ce_B + config.dice_weight * dice_B
    return loss_B, {"ce": ce_B.detach(), "dice": dice_B.detach()}


def _sum(values_BHW: Tensor) -> Tensor:
    """Of each sample, [B]."""
    return values_BHW.flatten(1).sum(1)


def _foreground_dice(logit_B2HW: Tensor, label_BHW: Tensor, smooth: float) -> Tensor:
    """1 - Dice(probability, label) on selected pixels, [B]; 0 without confident foreground."""
    prob_BHW = logit_B2HW.softmax(dim=1)[:, 1]
    selected_BHW = (label_BHW != IGNORE).to(prob_BHW.dtype)
    foreground_BHW = (label_BHW == 1).to(prob_BHW.dtype)
    foreground_B = _sum(foreground_BHW)
    overlap_B = _sum(prob_BHW * foreground_BHW)
    dice_B = 1.0 - (2.0 * overlap_B + smooth) / (_sum(prob_BHW * selected_BHW) + foreground_B + smooth)
    return dice_B * (foreground_B > 0)


def mean_over_samples(
    loss_B: Tensor, metrics: dict[str, Tensor], weight_B: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Means over samples, so that each has the same say however many of its pixels count.

    Args:
        loss_B: Loss of each sample.
        metrics: [B] each.
        weight_B: Factor of each sample's loss; metrics are not weighted, and the mean is over all samples.
    """
    loss = (loss_B if weight_B is None else loss_B * weight_B).mean()
    return loss, {name: value_B.float().mean() for name, value_B in metrics.items()}
