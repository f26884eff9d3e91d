"""Labelled samples only: the lower bound, and with `fraction=1` the upper one."""

from stage2_train.batch import Batch
from stage2_train.methods.base import Method, Networks, StepOutput


class Supervised(Method):
    """Class-weighted cross-entropy on weak views."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part = batch.labelled
        logit_B2HW = networks.logit(part.image_BHW3, part.ids_BT, part.token_mask_BT)
        loss, metrics = self.labelled_loss(logit_B2HW, part)
        return StepOutput(
            loss=self.config.loss.lambda_labelled * loss, metrics={"labelled_loss": loss.detach(), **metrics}
        )
