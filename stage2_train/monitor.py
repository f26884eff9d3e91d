"""What is watched during training: pseudo-labels against held-back masks, and signs of collapse.

The held-back masks come from a reader of their own and meet the run only here, after the gradient step: nothing in this
file returns a tensor to training.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from shared.errors import DataError
from shared.refer import ReferringDataset
from stage2_train.config import AlarmConfig
from stage2_train.losses import IGNORE
from stage2_train.methods.base import Pseudo
from stage2_train.resized_reader import ResizedReader


class CollapseError(DataError):
    """Training has collapsed; the message says what was seen."""


class HiddenMasks:
    """Masks of unlabelled samples, for the log alone."""

    def __init__(self, dataset: ReferringDataset, height: int, width: int) -> None:
        """Masks of `dataset` at the model's size."""
        self._reader = ResizedReader(dataset, height, width)

    def quality(self, pseudo: Pseudo) -> dict[str, Tensor]:
        """Compare what samples were taught with their masks.

        Returns:
            Scalars, means over samples: `prior_iou`, `weak_iou`, `fused_iou` (maps cut at 0.5), `selected_accuracy`
            (over selected pixels), `foreground_recall` (share of true foreground selected as foreground). Of methods
            with a prior also shares of all pixels: `disputed` (cut at 0.5, prior and weak view disagree),
            `disputed_prior_right` (and the prior has the mask's class), `disputed_taught` (and the pixel is selected),
            `disputed_taught_right` (selected with the mask's class). Ratios of their means over steps are ratios of
            pixels. A sample without a prior counts as one with an empty one.
        """
        masks = [torch.from_numpy(self._reader.mask(sample)) for sample in pseudo.samples]
        mask_BHW = torch.stack(masks).to(pseudo.label_BHW.device)
        mask_BHW = torch.where(pseudo.flip_B[:, None, None].to(mask_BHW.device), mask_BHW.flip(-1), mask_BHW)
        return pseudo_quality(pseudo, mask_BHW)


def pseudo_quality(pseudo: Pseudo, mask_BHW: Tensor) -> dict[str, Tensor]:
    """See `HiddenMasks.quality`; `mask_BHW` is bool, in the frame of the weak view."""
    selected_BHW = pseudo.label_BHW != IGNORE
    right_BHW = selected_BHW & ((pseudo.label_BHW == 1) == mask_BHW)
    hit_B = ((pseudo.label_BHW == 1) & mask_BHW).flatten(1).sum(1)
    figures = {
        "weak_iou": mean_iou(pseudo.weak_B1HW, mask_BHW),
        "fused_iou": mean_iou(pseudo.target_B1HW, mask_BHW),
        "selected_accuracy": _ratio(right_BHW.flatten(1).sum(1), selected_BHW.flatten(1).sum(1)),
        "foreground_recall": _ratio(hit_B, mask_BHW.flatten(1).sum(1)),
    }
    if pseudo.prior_B1HW is not None:
        figures["prior_iou"] = mean_iou(pseudo.prior_B1HW, mask_BHW)
        prior_BHW = pseudo.prior_B1HW[:, 0] >= 0.5
        disputed_BHW = prior_BHW != (pseudo.weak_B1HW[:, 0] >= 0.5)
        figures |= {
            "disputed": disputed_BHW.float().mean(),
            "disputed_prior_right": (disputed_BHW & (prior_BHW == mask_BHW)).float().mean(),
            "disputed_taught": (disputed_BHW & selected_BHW).float().mean(),
            "disputed_taught_right": (disputed_BHW & right_BHW).float().mean(),
        }
    return figures


def mean_iou(prob_B1HW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Mean over samples of the IoU of `prob >= 0.5` with a mask; an empty union counts 0."""
    pred_BHW = prob_B1HW[:, 0] >= 0.5
    return _ratio((pred_BHW & mask_BHW).flatten(1).sum(1), (pred_BHW | mask_BHW).flatten(1).sum(1))


def _ratio(part_B: Tensor, whole_B: Tensor) -> Tensor:
    return (part_B / whole_B.clamp(min=1)).mean()


class CollapseAlarm:
    """Counts consecutive steps out of bounds; the counts travel with checkpoints."""

    def __init__(self, config: AlarmConfig, first_step: int = 0) -> None:
        """Start with no strikes; the bounds count from `first_step` on."""
        self.config, self._first_step = config, first_step
        self.strikes: dict[str, int] = {}

    def check(self, step: int, loss: float, shares: Mapping[str, float], grad_norm: float = 0.0) -> None:
        """Look at one step.

        Args:
            step: 0-based step.
            loss: Its loss, over all processes.
            shares: `coverage` and `foreground` of the pseudo-labels; empty where there are none.
            grad_norm: Norm of its gradient, where it is known.

        Raises:
            CollapseError: Loss or gradient is not finite, or a share was out of bounds for `patience` steps in a row.
        """
        for name, value in (("loss", loss), ("norm of the gradient", grad_norm)):
            if not math.isfinite(value):
                raise CollapseError(
                    f"step {step}: the {name} is {value}; lower optim.lr or set optim.grad_clip"
                )
        config = self.config
        if not config.patience or step < self._first_step:
            return
        bounds = {
            "coverage": (config.min_coverage, 1.0),
            "foreground": (config.min_foreground, config.max_foreground),
        }
        for name, value in shares.items():
            low, high = bounds[name]
            self.strikes[name] = 0 if low <= value <= high else self.strikes.get(name, 0) + 1
            if self.strikes[name] >= config.patience:
                raise CollapseError(
                    f"step {step}: pseudo-label {name} was outside {low}..{high} for {config.patience} steps "
                    f"(now {value:.4g}): the run has collapsed; see the alarm settings"
                )
