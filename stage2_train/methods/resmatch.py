"""RESMatch (arXiv 2402.05589): FixMatch with model-adaptive guidance.

Its strong views (appearance only, and augmented text) are the views every method here uses. Its guidance weighs a
sample's loss by the quality of the pseudo-label and by how well strong and weak prediction agree; the formula is not
public. OURS, with s the weak mask (Pw >= 0.5), r the strong one, both without gradient:

    q = mean of Pw over s (0 if s is empty)        quality: how sure the network is of the object it found
    a = IoU(s, r)                                  agreement
    w = max(min_weight, q^quality_power a^agreement_power)
    loss = mean over samples of w * FixMatch's loss
"""

from torch import Tensor

from stage2_train.batch import Batch, UnlabelledPart
from stage2_train.config import ResmatchConfig
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks, weak_text
from stage2_train.pseudo_labels import Pseudo, confident_label, foreground_prob, mask_iou, pseudo_of


class ResMatch(Method):
    """Pseudo-labels as FixMatch, samples weighted by `guidance`."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part = batch.unlabelled
        assert part is not None
        pseudo = self.pseudo(networks, part)
        labelled_logit, strong_logit, survivors = self.student_pass(networks, batch)
        weight_B = guidance(pseudo.weak_B1HW, foreground_prob(strong_logit), self.config.resmatch)
        return self.combine(
            batch,
            self.labelled_loss(labelled_logit, batch.labelled),
            self.pseudo_loss(strong_logit, pseudo.label_BHW, weight_B=weight_B),
            pseudo,
            text_survivors=survivors,
            sample_weight=weight_B.mean(),
        )

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`."""
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        return pseudo_of(part, weak_B1HW, confident_label(weak_B1HW, self.config.resmatch.threshold))


def guidance(weak_B1HW: Tensor, strong_BHW: Tensor, config: ResmatchConfig) -> Tensor:
    """Weight w of each sample, [B] in [min_weight, 1] (module docstring).

    Args:
        weak_B1HW: Pw.
        strong_BHW: Foreground probability of the strong view, detached.
        config: Exponents and floor.
    """
    weak_BHW = weak_B1HW[:, 0]
    mask_BHW = weak_BHW >= 0.5
    area_B = mask_BHW.flatten(1).sum(1)
    quality_B = (weak_BHW * mask_BHW).flatten(1).sum(1) / area_B.clamp(min=1)
    agreement_B = mask_iou(mask_BHW, strong_BHW >= 0.5)
    weight_B = quality_B**config.quality_power * agreement_B**config.agreement_power
    return weight_B.clamp(min=config.min_weight)
