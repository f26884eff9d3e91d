"""Omni-RES: a teacher's mask corrected by a weak label, a box or a point, of each unlabelled sample.

The teacher is the moving average (`ema`). With p = Pw of the teacher:

    foreground  p > `foreground`;  background  `background_floor` < p < `background`;  the rest is ignored
    box         foreground outside is ignored; a sample whose foreground fills less than `min_fill` of it is dropped
    point       only the connected foreground that holds the point stays, foreground elsewhere is ignored; a sample
                without foreground at the point is dropped

A weak label takes foreground away and makes no background of it. A sample without one (an empty annotation) is
dropped. Connection is over the 8 neighbours of a pixel. The map of a sample that is logged and exported is Pw where
foreground may be, and 0 elsewhere and in dropped samples.

The method sees more than its rivals: one box or point for every unlabelled object. It never sees their masks
(`stage2_train.weak_labels`). In a comparison that has to be said.

The released code differs where this is OURS: it has no Dice, and both its losses are sums over pixels, so that a sample
of which little is selected weighs little (`loss.unlabelled.mean_over=all`); its point is the centre of the mask, and
what stays is the foreground within the box around the object that holds it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stage2_train.batch import Batch, UnlabelledPart, declared
from stage2_train.config import OmniResConfig
from stage2_train.losses import IGNORE
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks, weak_text
from stage2_train.pseudo_labels import Pseudo, pseudo_of

_GROWTHS_PER_LOOK = 16
"""Dilations between two looks at whether anything still grows: a look waits for the device."""


class OmniRes(Method):
    """Weak labels by `omni_res.weak_label`."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part = batch.unlabelled
        assert part is not None
        pseudo, region_BHW = self._corrected(networks, part)
        return self.teach(networks, batch, pseudo, kept=region_BHW.flatten(1).any(1).float().mean())

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`."""
        return self._corrected(networks, part)[0]

    def _corrected(self, networks: Networks, part: UnlabelledPart) -> tuple[Pseudo, Tensor]:
        """Labels, and where foreground may be, bool [B,H,W]."""
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        label_BHW, region_BHW = corrected(weak_B1HW[:, 0], part, self.config.omni_res)
        return pseudo_of(part, weak_B1HW, label_BHW, weak_B1HW * region_BHW[:, None]), region_BHW


def corrected(prob_BHW: Tensor, part: UnlabelledPart, config: OmniResConfig) -> tuple[Tensor, Tensor]:
    """What weak labels leave of Pw.

    Returns:
        Labels int64 [B,H,W] in {0, 1, IGNORE}, and bool [B,H,W]: where foreground may be, nowhere in a dropped sample.
    """
    label_BHW = band_label(prob_BHW, config)
    if config.weak_label == "box":
        box_B4 = declared(part.box_B4, "reads_weak_label")
        region_BHW, kept_B = in_box(label_BHW == 1, box_B4, config.min_fill)
    else:
        point_B2 = declared(part.point_B2, "reads_weak_label")
        region_BHW, kept_B = at_point(label_BHW == 1, point_B2)
    region_BHW = region_BHW & kept_B[:, None, None]
    keep_BHW = kept_B[:, None, None] & ((label_BHW != 1) | region_BHW)
    return torch.where(keep_BHW, label_BHW, IGNORE), region_BHW


def band_label(prob_BHW: Tensor, config: OmniResConfig) -> Tensor:
    """Labels before any correction."""
    label_BHW = torch.full(prob_BHW.shape, IGNORE, dtype=torch.int64, device=prob_BHW.device)
    label_BHW[(prob_BHW > config.background_floor) & (prob_BHW < config.background)] = 0
    label_BHW[prob_BHW > config.foreground] = 1
    return label_BHW


def in_box(foreground_BHW: Tensor, box_B4: Tensor, min_fill: float) -> tuple[Tensor, Tensor]:
    """Where foreground may be by a box, and whether it fills enough of it.

    Args:
        foreground_BHW: Bool.
        box_B4: x0, y0, x1, y1 in [0,1]; NaN where unknown. A pixel is inside if its centre is.
        min_fill: Least share of the box's pixels that are foreground.

    Returns:
        Bool [B,H,W], the inside, and bool [B].
    """
    height, width = foreground_BHW.shape[1:]
    x_W, y_H = (_centres(size, foreground_BHW.device) for size in (width, height))
    x0_B1, y0_B1, x1_B1, y1_B1 = box_B4.split(1, dim=1)
    inside_BW = (x_W >= x0_B1) & (x_W < x1_B1)
    inside_BH = (y_H >= y0_B1) & (y_H < y1_B1)
    inside_BHW = inside_BH[:, :, None] & inside_BW[:, None, :]
    area_B = inside_BHW.flatten(1).sum(1)
    fill_B = (foreground_BHW & inside_BHW).flatten(1).sum(1) / area_B.clamp(min=1)
    return inside_BHW, (fill_B >= min_fill) & (area_B > 0)


def at_point(foreground_BHW: Tensor, point_B2: Tensor) -> tuple[Tensor, Tensor]:
    """The foreground connected with the point, and whether there is any.

    Args:
        foreground_BHW: Bool.
        point_B2: x, y in [0,1]; NaN where unknown.

    Returns:
        Bool [B,H,W] and bool [B].
    """
    height, width = foreground_BHW.shape[1:]
    known_B = point_B2.isfinite().all(1)
    safe_B2 = torch.where(known_B[:, None], point_B2, 0.0)
    column_B = (safe_B2[:, 0] * width).long().clamp(0, width - 1)
    row_B = (safe_B2[:, 1] * height).long().clamp(0, height - 1)
    seed_BHW = torch.zeros_like(foreground_BHW)
    seed_BHW[torch.arange(len(row_B), device=row_B.device), row_B, column_B] = known_B
    object_BHW = connected(seed_BHW, foreground_BHW)
    return object_BHW, object_BHW.flatten(1).any(1)


def connected(seed_BHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Bool [B,H,W]: pixels of the mask that a path inside it joins to a seed pixel (8 neighbours)."""
    mask_B1HW = mask_BHW[:, None].float()
    grown_B1HW = seed_BHW[:, None].float() * mask_B1HW
    while True:
        before_B1HW = grown_B1HW
        for _ in range(_GROWTHS_PER_LOOK):
            grown_B1HW = F.max_pool2d(grown_B1HW, 3, stride=1, padding=1) * mask_B1HW
        if torch.equal(grown_B1HW, before_B1HW):
            return grown_B1HW[:, 0] > 0


def _centres(size: int, device: torch.device) -> Tensor:
    return (torch.arange(size, device=device) + 0.5) / size
