"""3DResT's rules: sampling by teacher-student consistency (TSCS) and quality-driven dynamic weighting (QDW).

The teacher is the moving average (`ema`), after a burn-in on labelled samples (`loss.burn_in_share`): an average of few
steps agrees with the student before either can find anything, and agreement is all these rules ask for. With t its weak
mask and r the student's strong one, both cut at 0.5:

    TSCS   IoU(t, r) > join_iou: the sample joins the labelled set; every pixel of t is taught, with the labelled loss,
           but under the class weights of pseudo-labels (`loss.unlabelled.class_weights`)
    QDW    otherwise: FixMatch's loss on the teacher's confident pixels, times IoU(t, r)

Where both masks are empty the IoU is 0: that neither found anything is no reason to teach the image as background. That
a sentence names nothing (`no_target`) is a label, which is not looked at for unlabelled samples.

OURS: a sample joins for the step at hand, not for good, so that a mask the teacher has since corrected is not kept, and
the part it joins stays a mean over the unlabelled samples under lambda_u. The class weights of labelled samples are not
3DResT's, and on its own masks they would make the network's foreground grow without end. 3DResT segments point clouds;
its rules are taken over, its network is not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stage2_train.batch import Batch, UnlabelledPart
from stage2_train.losses import supervised_loss
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks, weak_text
from stage2_train.pseudo_labels import Pseudo, confident_label, foreground_prob, mask_iou, pseudo_of


class TscsQdw(Method):
    """Consistent samples are labelled ones, the rest count by their consistency."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part = batch.unlabelled
        assert part is not None
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        labelled_logit, strong_logit, survivors = self.student_pass(networks, batch)
        labels = self._labels(weak_B1HW, strong_logit)
        weights = self.config.loss.unlabelled.class_weights
        as_labelled_B, _ = supervised_loss(strong_logit, labels.whole_BHW, weights)
        weighted, metrics = self.pseudo_loss(
            strong_logit, labels.sure_BHW, weight_B=labels.iou_B * ~labels.joins_B
        )
        return self.combine(
            batch,
            self.labelled_loss(labelled_logit, batch.labelled),
            ((as_labelled_B * labels.joins_B).mean() + weighted, metrics),
            pseudo_of(part, weak_B1HW, labels.taught_BHW),
            text_survivors=survivors,
            joined=labels.joins_B.float().mean(),
            consistency=labels.iou_B.mean(),
        )

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`; the student looks at the strong view, for what it agrees with is taught whole.

        Where only the average is left, as of a finished run, it would agree with itself: then the confident pixels
        alone are taught.
        """
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        if self.config.ema.teacher and networks.teacher is None:
            return pseudo_of(part, weak_B1HW, confident_label(weak_B1HW, self.config.tscs_qdw.threshold))
        ids_BT, token_mask_BT, _ = networks.strong_text(part, self.config.text.similarity)
        strong_logit = networks.logit(part.strong_BHW3, ids_BT, token_mask_BT)
        return pseudo_of(part, weak_B1HW, self._labels(weak_B1HW, strong_logit).taught_BHW)

    def _labels(self, weak_B1HW: Tensor, strong_B2HW: Tensor) -> "_Labels":
        """Of the teacher's weak view and the student's strong one."""
        config = self.config.tscs_qdw
        whole_BHW = (weak_B1HW[:, 0] >= 0.5).long()
        iou_B = mask_iou(whole_BHW == 1, foreground_prob(strong_B2HW) >= 0.5)
        return _Labels(
            whole_BHW=whole_BHW,
            sure_BHW=confident_label(weak_B1HW, config.threshold),
            iou_B=iou_B,
            joins_B=iou_B > config.join_iou,
        )


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """What the teacher says, and what becomes of it."""

    whole_BHW: Tensor
    """int64 in {0, 1}: every pixel."""
    sure_BHW: Tensor
    """int64 in {0, 1, IGNORE}: the confident pixels."""
    iou_B: Tensor
    """Of the teacher's mask and the student's."""
    joins_B: Tensor
    """Bool: joins the labelled set."""

    @property
    def taught_BHW(self) -> Tensor:
        """int64 in {0, 1, IGNORE}."""
        return torch.where(self.joins_B[:, None, None], self.whole_BHW, self.sure_BHW)
