"""Compares pseudo-labels with the masks held back from the unlabelled samples, for the log alone.

The masks come from a reader of their own and meet the run only here, after the gradient step: nothing in this
file returns a tensor to training.
"""

import torch
from torch import Tensor

from shared.refer import ReferringDataset
from stage2_train.losses import IGNORE
from stage2_train.pseudo_labels import Pseudo, mask_iou
from stage2_train.resized_reader import ResizedReader


class HiddenMasks:
    """Masks of unlabelled samples, for the log alone."""

    def __init__(self, dataset: ReferringDataset, height: int, width: int) -> None:
        """Masks of `dataset` at the model's size."""
        self._reader = ResizedReader(dataset, height, width)

    def quality(self, pseudo: Pseudo) -> dict[str, Tensor]:
        """Compare what samples were taught with their masks.

        Returns:
            Scalars. Means over samples: `prior_iou`, `weak_iou`, `fused_iou` (maps cut at 0.5), `foreground_recall`
            (share of true foreground selected as foreground). Shares of all pixels, whose means have ratios that are
            ratios of pixels: `selected` and `selected_right` (with the mask's class); of methods with a prior also
            `disputed` (cut at 0.5, prior and weak view disagree), `disputed_prior_right` (and the prior has the mask's
            class), `disputed_taught` (and the pixel is selected), `disputed_taught_right` (selected with the mask's
            class). A sample without a prior counts as one with an empty one.
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
        "selected": selected_BHW.float().mean(),
        "selected_right": right_BHW.float().mean(),
        "foreground_recall": (hit_B / mask_BHW.flatten(1).sum(1).clamp(min=1)).mean(),
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


def with_accuracy(figures: dict[str, float]) -> dict[str, float]:
    """Figures of a whole step, `selected_accuracy` in place of `selected` and `selected_right`.

    It is their ratio, so that a sample of which nothing is selected has no say; where there are only such, it is left
    out.
    """
    kept = {name: value for name, value in figures.items() if name not in ("selected", "selected_right")}
    if figures.get("selected"):
        kept["selected_accuracy"] = figures["selected_right"] / figures["selected"]
    return kept


def mean_iou(prob_B1HW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Mean over samples of the IoU of `prob >= 0.5` with a mask; an empty union counts 0."""
    return mask_iou(prob_B1HW[:, 0] >= 0.5, mask_BHW).mean()
