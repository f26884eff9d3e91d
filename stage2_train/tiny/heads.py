"""Training-only heads of backbone pretraining; none of them is exported.

Axes: P pairs, B images (P = B R), C_j channels and H_j x W_j positions of stage j, S side of the input.

- a mask logit read off every stage's map (deep supervision), against the area-averaged mask;
- which object is meant: the objects' mean mask logits, at every stage and in the final map, are a softmax over objects
  (a small network fails by naming the wrong object, which a loss over pixels hardly sees);
- shape, colour, pattern and size of whatever object lies at each position of stages 2 and 3 (or "nothing").
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_train.segmentor import StageMaps
from stage2_train.segmentor_config import VisionConfig
from stage2_train.tiny.pool import ATTRIBUTES, MAX_OBJECTS

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
    select: float = 0.7
    """Mean over the stages and the final map of the choice among objects."""
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
        self,
        maps: StageMaps,
        mask_PSS: Tensor,
        object_BSS: Tensor,
        attributes_BK4: Tensor,
        wanted_P: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of the stages' masks, of the stages' choices among objects, and of the attributes.

        Args:
            maps: Stage maps of P pairs.
            mask_PSS: float masks in {0, 1}.
            object_BSS: int64, 0 background, k + 1 object k.
            attributes_BK4: int64.
            wanted_P: int64 index of the object meant.
        """
        logits = [head(read).float() for head, read in zip(self.masks, maps.read, strict=True)]
        masks = [
            F.binary_cross_entropy_with_logits(
                logit_P1HW, F.interpolate(mask_PSS.unsqueeze(1), size=logit_P1HW.shape[-2:], mode="area")
            )
            for logit_P1HW in logits
        ]
        choices = [select_loss(logit_P1HW[:, 0], object_BSS, wanted_P) for logit_P1HW in logits]
        attributes = self._attribute_loss(maps, object_BSS, attributes_BK4)
        return torch.stack(masks).mean(), torch.stack(choices).mean(), attributes

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
            logits = head(visual_PCHW).float().split(self.sizes, dim=1)
            losses += [F.cross_entropy(logit, target_P4HW[:, i]) for i, logit in enumerate(logits)]
        return torch.stack(losses).mean()


def select_loss(margin_PHW: Tensor, object_BSS: Tensor, wanted_P: Tensor) -> Tensor:
    """Cross-entropy of the choice among a scene's objects by their mean mask logit.

    Args:
        margin_PHW: Foreground logit (or foreground minus background), any resolution.
        object_BSS: int64, 0 background, k + 1 object k.
        wanted_P: int64 index of the object meant.
    """
    present_BKSS = F.one_hot(object_BSS, MAX_OBJECTS + 1)[..., 1:].permute(0, 3, 1, 2).float()
    share_BKHW = F.interpolate(present_BKSS, size=margin_PHW.shape[-2:], mode="area")
    repeats = len(margin_PHW) // len(object_BSS)
    summed_BRK = torch.einsum("bkhw,brhw->brk", share_BKHW, margin_PHW.unflatten(0, (-1, repeats)))
    area_B1K = share_BKHW.sum(dim=(2, 3)).unsqueeze(1)
    mean_BRK = (summed_BRK / area_B1K.clamp(min=1e-6)).masked_fill(area_B1K == 0, -1e4)
    return F.cross_entropy(mean_BRK.flatten(0, 1), wanted_P)


def mask_loss(logit_P2SS: Tensor, mask_PSS: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice of two-class logits against float masks."""
    ce = F.cross_entropy(logit_P2SS, mask_PSS.long())
    prob_PU, mask_PU = logit_P2SS.softmax(dim=1)[:, 1].flatten(1), mask_PSS.flatten(1)
    overlap_P, total_P = (prob_PU * mask_PU).sum(dim=1), (prob_PU + mask_PU).sum(dim=1)
    return ce, (1.0 - (2.0 * overlap_P + 1.0) / (total_P + 1.0)).mean()
