"""AugSeg (Zhao et al., CVPR 2023): labelled regions are pasted into the unlabelled images the teacher is unsure of.

The teacher is the moving average (`ema`). With p = Pw of the teacher and H the binary entropy in bits:

    rho = mean_u max(p, 1 - p) (1 - H(p))                  confidence of the sample
    with probability 1 - rho a rectangle of the strong view is replaced by the same rectangle of a labelled image

Pixels with max(p, 1 - p) >= `threshold` outside the rectangle teach the strong view; `paste` says what those inside do.
In semantic segmentation pasted pixels keep their labels; here a label belongs to a sentence, and the pasted region was
never asked about this one, so OURS leaves it untaught by default. What is logged and exported are the labels of the
unlabelled image itself, before anything was pasted into it.

The loss is a mean over all pixels, not over the selected ones (`loss.unlabelled.mean_over`, set by its recipes), as in
the released code: the first pixels to pass a threshold of 0.95 are few, and all foreground.

Left out: its random-intensity views (all methods here share one set of strong views) and CutMix between unlabelled
images (a sample's gradient would depend on its neighbour). Unlabelled sample i is mixed with labelled sample i.
"""

import dataclasses

import torch
from torch import Tensor

from shared.seeding import rng
from stage2_train.batch import Batch, UnlabelledPart
from stage2_train.config import AugsegConfig
from stage2_train.constants import constant
from stage2_train.losses import IGNORE
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks, weak_text
from stage2_train.pseudo_labels import Pseudo, confident_label, pseudo_of


class AugSeg(Method):
    """FixMatch under a teacher with adaptive pasting of labelled regions."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part, labelled, config = batch.unlabelled, batch.labelled, self.config.augseg
        assert part is not None
        pseudo = self.pseudo(networks, part)
        draw_B4 = self._draws(batch).to(pseudo.weak_B1HW.device, non_blocking=True)
        pasted_BHW = regions(draw_B4, sureness(pseudo.weak_B1HW), pseudo.label_BHW.shape[1:], config)
        taught_BHW = paste_label(pseudo.label_BHW, pasted_BHW, labelled.target_BHW.long(), config)
        strong_BHW3 = torch.where(pasted_BHW[..., None], labelled.image_BHW3, part.strong_BHW3)
        mixed = dataclasses.replace(batch, unlabelled=dataclasses.replace(part, strong_BHW3=strong_BHW3))
        labelled_logit, strong_logit, survivors = self.student_pass(networks, mixed)
        return self.combine(
            batch,
            self.labelled_loss(labelled_logit, labelled),
            self.pseudo_loss(strong_logit, taught_BHW),
            pseudo,
            text_survivors=survivors,
            pasted=pasted_BHW.float().mean(),
        )

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`; without what is pasted, which is not the sample's own."""
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        return pseudo_of(part, weak_B1HW, confident_label(weak_B1HW, self.config.augseg.threshold))

    def _draws(self, batch: Batch) -> Tensor:
        """f32 [B,4] in [0,1): whether to paste, area, horizontal and vertical place; keyed by step and sample."""
        assert batch.unlabelled is not None
        keys = [(self.config.seed, batch.step, s.sample_id, "augseg") for s in batch.unlabelled.samples]
        return torch.stack([torch.from_numpy(rng(*key).random(4, dtype="float32")) for key in keys])


def sureness(weak_B1HW: Tensor) -> Tensor:
    """Confidence rho of each sample, [B] in [0, 1]."""
    prob_BU2 = torch.stack((weak_B1HW.flatten(1), 1.0 - weak_B1HW.flatten(1)), dim=2)
    entropy_BU = -torch.xlogy(prob_BU2, prob_BU2).sum(2) / torch.log(constant(2.0, prob_BU2))
    return (prob_BU2.amax(2) * (1.0 - entropy_BU)).mean(1)


def regions(draw_B4: Tensor, sure_B: Tensor, size_hw: torch.Size, config: AugsegConfig) -> Tensor:
    """Bool [B,H,W]: the rectangle to paste into each sample; empty with probability `sure_B`.

    Args:
        draw_B4: Uniform numbers in [0,1): decision, area, place across, place down.
        sure_B: rho.
        size_hw: H and W.
        config: Range of areas. A rectangle has the image's own aspect ratio; sides are rounded to pixels.
    """
    height, width = size_hw
    area_B = config.min_area + (config.max_area - config.min_area) * draw_B4[:, 1]
    rows_B, columns_B = ((area_B.sqrt() * side).round().clamp(min=1) for side in (height, width))
    left_B = (draw_B4[:, 2] * (width - columns_B + 1)).floor()
    top_B = (draw_B4[:, 3] * (height - rows_B + 1)).floor()
    y_H = torch.arange(height, device=draw_B4.device)
    x_W = torch.arange(width, device=draw_B4.device)
    inside_BH = (y_H >= top_B[:, None]) & (y_H < (top_B + rows_B)[:, None])
    inside_BW = (x_W >= left_B[:, None]) & (x_W < (left_B + columns_B)[:, None])
    chosen_B = draw_B4[:, 0] >= sure_B
    return inside_BH[:, :, None] & inside_BW[:, None, :] & chosen_B[:, None, None]


def paste_label(label_BHW: Tensor, pasted_BHW: Tensor, source_BHW: Tensor, config: AugsegConfig) -> Tensor:
    """Pseudo-labels outside the pasted region, `config.paste` inside it; `source_BHW` are the labelled masks."""
    if config.paste == "copy":
        return torch.where(pasted_BHW, source_BHW, label_BHW)
    return torch.where(pasted_BHW, IGNORE if config.paste == "ignore" else 0, label_BHW)
