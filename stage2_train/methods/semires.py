"""SemiRES (arXiv 2406.01451): the teacher's mask is exchanged for candidate masks that match it.

The teacher is the moving average (`ema`), after a burn-in on labelled samples (`loss.burn_in_share`). With s its weak
mask (Pw >= 0.5) and c the class-agnostic candidates of the image (`stage2_train.candidates`):

    IOM   the candidate of highest IoU(s, c), if that exceeds `iou`
    CPI   the union of all c with |s & c| / |c| or |s & c| / |s| above `overlap`, if there is one
    PWA   where nothing matched: s itself, each pixel with weight a - exp(-(p - 0.5)^2 / b) / sqrt(pi b)

A matched mask has weight 1 everywhere; every pixel is taught. The loss is the one all methods share; SemiRES's class
weights 0.9 / 1.1 are set by its recipes, OURS: on pseudo-labels alone.

The released code differs where this is OURS: its burn-in is a whole supervised run, whose best network both copies
start from; it has no Dice; unmatched samples have no class weights, and count, all together, as much as the matched
ones of the batch; its IOM script (not the CPI one) multiplies the labelled loss by 10 (`loss.lambda_labelled`).
"""

import math

import torch
from torch import Tensor

from stage2_train.batch import Batch, UnlabelledPart, declared
from stage2_train.config import SemiresConfig
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks, weak_text
from stage2_train.pseudo_labels import Pseudo, pseudo_of


class SemiRes(Method):
    """Teacher, matching by `semires.match`, and pixel-wise adjustment for the rest."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part = batch.unlabelled
        assert part is not None
        pseudo, weight_BHW, matched_B = self._refined(networks, part)
        return self.teach(networks, batch, pseudo, weight_BHW, matched=matched_B.float().mean())

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`."""
        return self._refined(networks, part)[0]

    def _refined(self, networks: Networks, part: UnlabelledPart) -> tuple[Pseudo, Tensor, Tensor]:
        """Labels, f32 pixel weights [B,H,W], and bool [B]: whether a candidate matched, which then is the target."""
        candidates_BMHW = declared(part.candidates_BMHW, "reads_candidates")
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        label_BHW, weight_BHW, matched_B = refine(weak_B1HW, candidates_BMHW, self.config.semires)
        target_B1HW = torch.where(
            matched_B[:, None, None, None], label_BHW[:, None].to(weak_B1HW.dtype), weak_B1HW
        )
        return pseudo_of(part, weak_B1HW, label_BHW, target_B1HW), weight_BHW, matched_B


def refine(
    weak_B1HW: Tensor, candidates_BMHW: Tensor, config: SemiresConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Matching, and pixel-wise adjustment where nothing matched.

    Args:
        weak_B1HW: Pw of the teacher.
        candidates_BMHW: Bool; absent candidates are empty and match nothing.
        config: Rule and thresholds.

    Returns:
        int64 labels [B,H,W] in {0,1}, f32 pixel weights [B,H,W], and bool [B]: whether a candidate matched.
    """
    mask_BHW = weak_B1HW[:, 0] >= 0.5
    if config.match == "iom":
        found_BHW, matched_B = best_match(mask_BHW, candidates_BMHW, config.iou)
    else:
        found_BHW, matched_B = composite(mask_BHW, candidates_BMHW, config.overlap)
    keep_B11 = matched_B[:, None, None]
    weight_BHW = torch.where(keep_B11, 1.0, pixel_weight(weak_B1HW[:, 0], config))
    return torch.where(keep_B11, found_BHW, mask_BHW).long(), weight_BHW, matched_B


def best_match(mask_BHW: Tensor, candidates_BMHW: Tensor, least_iou: float) -> tuple[Tensor, Tensor]:
    """IOM: the candidate of highest IoU (the first of equals), and whether its IoU exceeds `least_iou`."""
    inter_BM, area_BM, area_B1 = _areas(mask_BHW, candidates_BMHW)
    iou_BM = inter_BM / (area_BM + area_B1 - inter_BM).clamp(min=1)
    best_B = iou_BM.argmax(1)
    rows_B = torch.arange(len(best_B), device=best_B.device)
    return candidates_BMHW[rows_B, best_B], iou_BM[rows_B, best_B] > least_iou


def composite(mask_BHW: Tensor, candidates_BMHW: Tensor, overlap: float) -> tuple[Tensor, Tensor]:
    """CPI: the union of the candidates that lie in the mask or hold it, and whether there is one."""
    inter_BM, area_BM, area_B1 = _areas(mask_BHW, candidates_BMHW)
    inside_BM = inter_BM / area_BM.clamp(min=1) > overlap
    holds_BM = inter_BM / area_B1.clamp(min=1) > overlap
    fits_BM = inside_BM | holds_BM
    return (candidates_BMHW & fits_BM[:, :, None, None]).any(1), fits_BM.any(1)


def _areas(mask_BHW: Tensor, candidates_BMHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|s & c| [B,M], |c| [B,M] and |s| [B,1], pixels."""
    inter_BM = (candidates_BMHW & mask_BHW[:, None]).flatten(2).sum(2)
    return inter_BM, candidates_BMHW.flatten(2).sum(2), mask_BHW.flatten(1).sum(1, keepdim=True)


def pixel_weight(prob: Tensor, config: SemiresConfig) -> Tensor:
    """PWA: near 0 at p = 0.5, near 1 at both ends; any shape, never negative."""
    spread = config.weight_spread
    bump = torch.exp(-((prob - 0.5) ** 2) / spread) / math.sqrt(math.pi * spread)
    return (config.weight_offset - bump).clamp(min=0.0)
