"""A linear blend of the frozen prior and the weak view teaches the strong view ("Baseline w/ MLLM").

`blend.target` chooses what is made of the blend; see `BlendConfig`. The soft target has no class weights: with
0.5/1.5 a blend of the network's own prediction amplifies foreground at every step and runs away.
"""

import torch
from torch import Tensor

from stage2_train.batch import Batch, UnlabelledPart, declared, known_prior
from stage2_train.config import BlendConfig
from stage2_train.losses import IGNORE
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks, weak_text
from stage2_train.pseudo_labels import Pseudo, confident_label, pseudo_of
from stage2_train.spm import agreement


class MllmBlend(Method):
    """Target = r P† + (1 - r) Pw."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part = batch.unlabelled
        assert part is not None
        pseudo = self.pseudo(networks, part)
        labelled_logit, strong_logit, survivors = self.student_pass(networks, batch)
        if self.config.blend.target == "soft":
            unlabelled = soft_cross_entropy(strong_logit, pseudo.target_B1HW)
        else:
            unlabelled = self.pseudo_loss(strong_logit, pseudo.label_BHW)
        return self.combine(
            batch,
            self.labelled_loss(labelled_logit, batch.labelled),
            unlabelled,
            pseudo,
            text_survivors=survivors,
            prior_rows=declared(part.has_prior_B, "reads_prior").float().mean(),
        )

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`."""
        config = self.config.blend
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        prior_B1HW = known_prior(part, weak_B1HW)
        blend_B1HW = config.prior_share * prior_B1HW + (1.0 - config.prior_share) * weak_B1HW
        label_BHW = blend_label(prior_B1HW, weak_B1HW, blend_B1HW, config)
        if config.target == "agree":  # a row without a prior is confirmed by nothing
            has_prior_B = declared(part.has_prior_B, "reads_prior")
            label_BHW = torch.where(has_prior_B[:, None, None], label_BHW, IGNORE)
        return pseudo_of(part, weak_B1HW, label_BHW, blend_B1HW, part.prior_B1HW)


def blend_label(prior_B1HW: Tensor, weak_B1HW: Tensor, blend_B1HW: Tensor, config: BlendConfig) -> Tensor:
    """Hard labels of a blend.

    Args:
        prior_B1HW: P† (Pw where there is none).
        weak_B1HW: Pw.
        blend_B1HW: Their blend.
        config: Rule and thresholds.

    Returns:
        int64 [B,H,W] in {0,1,IGNORE}. Under `soft` every pixel counts and the label is the blend's side of 0.5.
    """
    if config.target == "soft":
        return (blend_B1HW[:, 0] >= 0.5).long()
    if config.target == "threshold":
        return confident_label(blend_B1HW, config.threshold)
    prior_BHW, weak_BHW = (confident_label(p, config.threshold) for p in (prior_B1HW, weak_B1HW))
    sure_B = agreement(weak_B1HW, prior_B1HW) > config.agreement
    keep_BHW = (prior_BHW == weak_BHW) & sure_B[:, None, None]
    return torch.where(keep_BHW, weak_BHW, IGNORE)


def soft_cross_entropy(logit_B2HW: Tensor, target_B1HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Unweighted cross-entropy against a probability map, mean over pixels and samples; no Dice."""
    log_B2HW = logit_B2HW.log_softmax(1)
    target_BHW = target_B1HW[:, 0]
    loss = -(target_BHW * log_B2HW[:, 1] + (1.0 - target_BHW) * log_B2HW[:, 0]).mean()
    return loss, {"ce": loss.detach(), "dice": torch.zeros_like(loss)}
