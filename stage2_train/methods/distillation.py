"""Distillation: the frozen prior alone teaches the strong view; what the network predicts is no part of the target.

The control for every rule that mixes prediction and prior (the paper's blends have 20 to 80% of the prior). A row
without a proposal is taught nothing.

OURS, not in the paper: `distillation.select_from` turns on a selection of samples, as learning from noisy labels
selects by agreement or by small losses (Co-teaching and its kin). A network that was taught by all priors is wrong
elsewhere than a single prior is, so that a sample on which the two have little in common has a doubtful prior:

    taught_i = IoU(P†_i >= 0.5, Pw_i >= 0.5) >= select_iou          from step select_from * steps on

The labels of a taught sample stay those of the prior alone, so that no error of the network is confirmed by itself.
"""

import torch
from torch import Tensor

from stage2_train.batch import Batch, UnlabelledPart, declared
from stage2_train.losses import IGNORE
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks, weak_text
from stage2_train.pseudo_labels import Pseudo, confident_label, mask_iou, pseudo_of


class Distillation(Method):
    """Pseudo-label = P† thresholded at `distillation.threshold`."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        assert batch.unlabelled is not None
        selects = batch.step >= self.config.steps * self.config.distillation.select_from
        pseudo, taught_B = self._pseudo(networks, batch.unlabelled, selects)
        return self.teach(networks, batch, pseudo, taught_samples=taught_B.float().mean())

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`: as at the end of training, so that samples are selected if they ever are."""
        return self._pseudo(networks, part, self.config.distillation.select_from < 1.0)[0]

    def _pseudo(self, networks: Networks, part: UnlabelledPart, selects: bool) -> tuple[Pseudo, Tensor]:
        """The pseudo-labels, and a flag for each sample that it is taught."""
        config = self.config.distillation
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        prior_B1HW, taught_B = (
            declared(part.prior_B1HW, "reads_prior"),
            declared(part.has_prior_B, "reads_prior"),
        )
        if selects:
            taught_B = taught_B & (mask_iou(prior_B1HW >= 0.5, weak_B1HW >= 0.5) >= config.select_iou)
        label_BHW = confident_label(prior_B1HW, config.threshold)
        label_BHW = torch.where(taught_B[:, None, None], label_BHW, IGNORE)
        return pseudo_of(part, weak_B1HW, label_BHW, prior_B1HW, prior_B1HW), taught_B
