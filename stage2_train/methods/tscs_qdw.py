"""3DResT's rules: sampling by teacher-student consistency (TSCS) and quality-driven dynamic weighting (QDW).

The teacher is the moving average (`ema`), in the paper after a burn-in on labelled samples (`loss.burn_in_share`). With
t its weak mask and r the student's strong one, both cut at 0.5:

    TSCS   IoU(t, r) > join_iou: the sample joins the labelled set; every pixel of t is taught, with the labelled loss
    QDW    otherwise: FixMatch's loss on the teacher's confident pixels, times IoU(t, r)

Where both masks are empty the IoU is 0: that neither found anything is no reason to teach the image as background. That
a sentence names nothing (`no_target`) is a label, which is not looked at for unlabelled samples.

OURS: a sample joins for the step at hand, not for good, so that a mask the teacher has since corrected is not kept, and
the part it joins stays a mean over the unlabelled samples under lambda_u. 3DResT segments point clouds; its rules are
taken over, its network is not.
"""

import torch

from stage2_train.batch import Batch
from stage2_train.losses import supervised_loss
from stage2_train.methods.base import (
    Method,
    Networks,
    StepOutput,
    confident_label,
    foreground_prob,
    mask_iou,
    per_sample,
    plain_pseudo,
    weak_text,
)


class TscsQdw(Method):
    """Consistent samples are labelled ones, the rest count by their consistency."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part, config = batch.unlabelled, self.config.tscs_qdw
        assert part is not None
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        whole_BHW = (weak_B1HW[:, 0] >= 0.5).long()
        labelled_logit, strong_logit, survivors = self.student_pass(networks, batch)
        iou_B = mask_iou(whole_BHW == 1, foreground_prob(strong_logit) >= 0.5)
        joins_B = iou_B > config.join_iou
        sure_BHW = confident_label(weak_B1HW, config.threshold)
        as_labelled, _ = per_sample(
            lambda logit, label: supervised_loss(logit, label, self.config.loss.class_weights),
            strong_logit,
            whole_BHW,
            weight_B=joins_B.float(),
        )
        weighted, metrics = self.pseudo_loss(strong_logit, sure_BHW, weight_B=iou_B * ~joins_B)
        label_BHW = torch.where(joins_B[:, None, None], whole_BHW, sure_BHW)
        return self.combine(
            batch,
            self.labelled_loss(labelled_logit, batch.labelled),
            (as_labelled + weighted, metrics),
            plain_pseudo(part, weak_B1HW, label_BHW),
            text_survivors=survivors,
            joined=joins_B.float().mean(),
            consistency=iou_B.mean(),
        )
