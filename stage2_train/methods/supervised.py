"""Labelled samples only: the lower bound, and with `fraction=1` the upper one."""

from stage2_train.batch import Batch
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks


class Supervised(Method):
    """Class-weighted cross-entropy on weak views."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        return self.labelled_only(networks, batch.labelled)
