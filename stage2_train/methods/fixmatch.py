"""FixMatch: confident pixels of the weak view teach the strong view ("Baseline w/o MLLM").

Left out of the original: temperature sharpening (hard labels have none).
"""

from stage2_train.batch import Batch
from stage2_train.methods.base import (
    Method,
    Networks,
    Pseudo,
    StepOutput,
    confident_label,
    joint_logits,
    weak_text,
)


class FixMatch(Method):
    """Pseudo-label = Pw thresholded at `fixmatch.threshold`."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part = batch.unlabelled
        assert part is not None
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        label_BHW = confident_label(weak_B1HW, self.config.fixmatch.threshold)
        ids_BT, token_mask_BT, survivors = networks.strong_text(part, self.config.text.similarity)
        labelled_logit, strong_logit = joint_logits(networks, batch.labelled, part, (ids_BT, token_mask_BT))
        pseudo = Pseudo(
            samples=part.samples,
            flip_B=part.flip_B,
            weak_B1HW=weak_B1HW,
            prior_B1HW=None,
            target_B1HW=weak_B1HW,
            label_BHW=label_BHW,
        )
        return self.combine(
            batch,
            self.labelled_loss(labelled_logit, batch.labelled),
            self.pseudo_loss(strong_logit, label_BHW),
            pseudo,
            text_survivors=survivors,
        )
