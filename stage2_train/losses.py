"""Losses on two-class logits.

Axes: B samples, H x W pixels. Labels are int64 with 0 background, 1 foreground and `IGNORE` for pixels that do not
count. Every loss returns `(loss, metrics)`: a scalar that carries gradient, and detached scalars for the log.
"""

from collections.abc import Callable
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
    """Class-weighted cross-entropy, a weighted mean over pixels that are not ignored.

    Args:
        logit_B2HW: Network output.
        mask_BHW: int64 labels.
        weights: Background and foreground weight.

    Returns:
        Loss and metrics (`ce`, `accuracy`). No labelled pixel at all gives 0 with zero gradient.
    """
    counted_BHW = mask_BHW != IGNORE
    some = counted_BHW.any()  # not looked at here, which would wait for the device
    target_BHW = torch.where(some, mask_BHW, 0)
    mean = F.cross_entropy(logit_B2HW, target_BHW, weight=constant(weights, logit_B2HW), ignore_index=IGNORE)
    loss = mean * some
    right_BHW = (logit_B2HW.detach().argmax(dim=1) == mask_BHW) & counted_BHW
    return loss, {"ce": loss.detach(), "accuracy": right_BHW.sum() / counted_BHW.sum().clamp(min=1)}


def unsupervised_loss(
    logit_B2HW: Tensor,
    label_BHW: Tensor,
    config: UnsupervisedLossConfig,
    pixel_weight_BHW: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`ce_weight` * cross-entropy on selected pixels + `dice_weight` * Dice on confident foreground.

    Args:
        logit_B2HW: Strong-view output.
        label_BHW: int64 pseudo-labels; `IGNORE` is not selected.
        config: Weights.
        pixel_weight_BHW: Optional quality of each pixel's label, float >= 0. The cross-entropy stays a mean over the
            number of pixels (`mean_over`), so that lower quality means a smaller loss; Dice takes a sample's mean
            weight over the same pixels.

    Returns:
        Loss and metrics (`ce`, `dice`, `coverage`, `foreground`: shares of all pixels). Nothing selected gives 0 with
        zero gradient.
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
    ce = (ce_BHW * weight_BHW).sum() / counted_BHW.sum().clamp(min=1)
    quality_B = weight_BHW.flatten(1).sum(1) / counted_BHW.flatten(1).sum(1).clamp(min=1)
    dice = _foreground_dice(logit_B2HW, label_BHW, quality_B, config.dice_smooth)
    loss = config.ce_weight * ce + config.dice_weight * dice
    metrics = {
        "ce": ce.detach(),
        "dice": dice.detach(),
        "coverage": selected_BHW.float().mean(),
        "foreground": (label_BHW == 1).float().mean(),
    }
    return loss, metrics


def _foreground_dice(logit_B2HW: Tensor, label_BHW: Tensor, quality_B: Tensor, smooth: float) -> Tensor:
    """Mean over samples with confident foreground of quality (1 - Dice(probability, label)) on selected pixels."""
    prob_BHW = logit_B2HW.softmax(dim=1)[:, 1]
    selected_BHW = (label_BHW != IGNORE).to(prob_BHW.dtype)
    foreground_BHW = (label_BHW == 1).to(prob_BHW.dtype)
    overlap_B = (prob_BHW * foreground_BHW).flatten(1).sum(dim=1)
    total_B = (prob_BHW * selected_BHW).flatten(1).sum(dim=1) + foreground_BHW.flatten(1).sum(dim=1)
    dice_B = 1.0 - (2.0 * overlap_B + smooth) / (total_B + smooth)
    has_foreground_B = foreground_BHW.flatten(1).any(dim=1).to(prob_BHW.dtype)
    return (dice_B * quality_B * has_foreground_B).sum() / has_foreground_B.sum().clamp(min=1.0)


def per_sample(
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], *tensors: Tensor, weight_B: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over samples of a loss that would otherwise normalise over the whole batch; metrics likewise.

    Args:
        loss: Loss and metrics of one sample, given each tensor's row with its axis kept.
        *tensors: [B, ...] each.
        weight_B: Factor of each sample's loss; metrics are not weighted, and the mean is over all samples.
    """
    results = [loss(*(tensor[i : i + 1] for tensor in tensors)) for i in range(len(tensors[0]))]
    loss_B = torch.stack([value for value, _ in results])
    if weight_B is not None:
        loss_B = loss_B * weight_B
    names = results[0][1]
    return loss_B.mean(), {name: torch.stack([m[name] for _, m in results]).mean() for name in names}
