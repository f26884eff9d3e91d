"""Training-only heads of backbone pretraining; none of them is exported.

Axes: P pairs, B images (P = B R), C_j channels and H_j x W_j positions of stage j, S side of the input.

- a mask logit read off every stage's map (deep supervision), against the area-averaged mask;
- shape, colour, pattern and size of whatever object lies at each position of stages 2 and 3 (or "nothing").
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_train.segmentor import StageMaps
from stage2_train.segmentor_config import VisionConfig
from stage2_train.tiny.pool import ATTRIBUTES

ATTRIBUTE_STAGES = (1, 2)
"""Stages, counted from 0, whose visual map must tell objects apart."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the pretraining losses."""

    ce: float = 1.0
    """Cross-entropy of the final mask."""
    dice: float = 1.0
    """Dice of the final mask."""
    stages: float = 0.3
    """Mean over stages of the deep supervision."""
    attributes: float = 0.3
    """Mean over stages and attributes of the classification."""


class TrainingHeads(nn.Module):
    """Heads on the stage maps."""

    def __init__(self, config: VisionConfig) -> None:
        """Build for the tower's channels."""
        super().__init__()
        self.masks = nn.ModuleList(nn.Conv2d(dim, 1, 1) for dim in config.dims)
        self.sizes = tuple(len(values) + 1 for values in ATTRIBUTES.values())
        self.attributes = nn.ModuleList(
            nn.Conv2d(config.dims[s], sum(self.sizes), 1) for s in ATTRIBUTE_STAGES
        )

    def forward(
        self, maps: StageMaps, mask_PSS: Tensor, object_BSS: Tensor, attributes_BK4: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses of the stages' masks and of the attributes.

        Args:
            maps: Stage maps of P pairs.
            mask_PSS: float masks in {0, 1}.
            object_BSS: int64, 0 background, k + 1 object k.
            attributes_BK4: int64.
        """
        return self._mask_loss(maps, mask_PSS), self._attribute_loss(maps, object_BSS, attributes_BK4)

    def _mask_loss(self, maps: StageMaps, mask_PSS: Tensor) -> Tensor:
        losses = []
        for head, read_PCHW in zip(self.masks, maps.read, strict=True):
            target_P1HW = F.interpolate(mask_PSS.unsqueeze(1), size=read_PCHW.shape[-2:], mode="area")
            losses.append(F.binary_cross_entropy_with_logits(head(read_PCHW), target_P1HW))
        return torch.stack(losses).mean()

    def _attribute_loss(self, maps: StageMaps, object_BSS: Tensor, attributes_BK4: Tensor) -> Tensor:
        nothing_B14 = torch.full_like(attributes_BK4[:, :1], -1)
        table_BK4 = torch.cat((nothing_B14, attributes_BK4), dim=1) + 1
        losses = []
        for head, stage in zip(self.attributes, ATTRIBUTE_STAGES, strict=True):
            visual_PCHW = maps.visual[stage]
            repeats = len(visual_PCHW) // len(object_BSS)
            stride = object_BSS.shape[-1] // visual_PCHW.shape[-1]
            centre_BHW = object_BSS[:, stride // 2 :: stride, stride // 2 :: stride]
            row_B11 = torch.arange(len(object_BSS))[:, None, None]
            target_P4HW = table_BK4[row_B11, centre_BHW].permute(0, 3, 1, 2).repeat_interleave(repeats, dim=0)
            logits = head(visual_PCHW).split(self.sizes, dim=1)
            losses += [F.cross_entropy(logit, target_P4HW[:, i]) for i, logit in enumerate(logits)]
        return torch.stack(losses).mean()


def mask_loss(logit_P2SS: Tensor, mask_PSS: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice of two-class logits against float masks."""
    ce = F.cross_entropy(logit_P2SS, mask_PSS.long())
    prob_PU, mask_PU = logit_P2SS.softmax(dim=1)[:, 1].flatten(1), mask_PSS.flatten(1)
    overlap_P, total_P = (prob_PU * mask_PU).sum(dim=1), (prob_PU + mask_PU).sum(dim=1)
    return ce, (1.0 - (2.0 * overlap_P + 1.0) / (total_P + 1.0)).mean()
