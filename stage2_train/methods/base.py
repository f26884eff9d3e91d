"""The interface of a training method, and the pieces of a loss that methods have in common.

Legend: B samples, H W model input, T tokens.
Invariant: losses are means over samples of each sample's own loss, so a sample's gradient does not depend on its
neighbours, and k micro-batches of b equal one batch of k*b (batch norms aside).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stage2_train.batch import Batch, LabelledPart, UnlabelledPart
from stage2_train.config import TrainConfig
from stage2_train.losses import IGNORE, mean_over_samples, supervised_loss, unsupervised_loss
from stage2_train.networks import Networks, joint_logits
from stage2_train.pseudo_labels import Pseudo


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """One micro-batch's loss."""

    loss: Tensor
    """Scalar with gradient."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars, means over the micro-batch; the same names at every step that is of the same samples."""
    pseudo: Pseudo | None = None
    """None where no unlabelled sample took part."""


class Method:
    """A rule that turns a micro-batch into a loss.

    Subclasses override `pseudo` if they teach unlabelled samples, `loss` if there is more to it than to `teach` that,
    and `labelled_only` where their labelled pass is not the plain one; those that learn something of their own also
    override the other three.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Keep the config."""
        self.config = config

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """The loss of one micro-batch: by default the strong view is taught what `pseudo` says of the weak one."""
        assert batch.unlabelled is not None
        return self.teach(networks, batch, self.pseudo(networks, batch.unlabelled))

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """What `loss` would teach these samples, the networks being as they are; nothing is noted or learnt."""
        raise NotImplementedError

    def labelled_only(self, networks: Networks, part: LabelledPart) -> StepOutput:
        """The loss of one micro-batch of a step at which unlabelled samples weigh nothing: no pass sees them."""
        logit_B2HW = networks.logit(part.image_BHW3, part.ids_BT, part.token_mask_BT)
        return self.labelled_output(*self.labelled_loss(logit_B2HW, part))

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Called once after each optimiser step.

        Args:
            gather: Joins a [B, ...] tensor of all processes in rank order.

        Returns:
            Further metrics, equal on all processes.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        assert not state, sorted(state)

    def unlabelled_weight(self, step: int) -> float:
        """lambda_u at a step: 0 during the burn-in, then ramped up linearly where configured."""
        loss = self.config.loss
        done = step + 1 - self.config.burn_in_steps
        if done <= 0:
            return 0.0
        ramp = min(1.0, done / loss.rampup_steps) if loss.rampup_steps else 1.0
        return loss.lambda_unlabelled * ramp

    def student_pass(self, networks: Networks, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One pass with gradient over labelled weak and unlabelled strong views, without a field.

        Returns:
            Labelled logits, strong logits, and the share of candidate texts that survived the filter.
        """
        assert batch.unlabelled is not None
        ids_BT, token_mask_BT, survivors = networks.strong_text(batch.unlabelled, self.config.text.similarity)
        logits = joint_logits(networks, batch.labelled, batch.unlabelled, (ids_BT, token_mask_BT))
        return (*logits, survivors)

    def teach(
        self,
        networks: Networks,
        batch: Batch,
        pseudo: Pseudo,
        pixel_weight_BHW: Tensor | None = None,
        **extra: Tensor,
    ) -> StepOutput:
        """The loss of labelled samples and of strong views that are taught `pseudo`.

        Args:
            networks: Student and teacher.
            batch: With an unlabelled part.
            pseudo: Labels of the unlabelled samples.
            pixel_weight_BHW: Quality of each pixel's label, see `losses.unsupervised_loss`.
            **extra: Further metrics.
        """
        labelled_logit, strong_logit, survivors = self.student_pass(networks, batch)
        return self.combine(
            batch,
            self.labelled_loss(labelled_logit, batch.labelled),
            self.pseudo_loss(strong_logit, pseudo.label_BHW, pixel_weight_BHW),
            pseudo,
            text_survivors=survivors,
            **extra,
        )

    def labelled_loss(self, logit_B2HW: Tensor, part: LabelledPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Supervised loss of the labelled samples, unweighted by lambda_l."""
        weights = self.config.loss.class_weights
        loss, metrics = mean_over_samples(*supervised_loss(logit_B2HW, part.target_BHW.long(), weights))
        return loss, {f"labelled_{name}": value for name, value in metrics.items()}

    def labelled_output(self, loss: Tensor, metrics: dict[str, Tensor]) -> StepOutput:
        """`lambda_l * labelled` alone, of what `labelled_loss` gave."""
        return StepOutput(
            loss=self.config.loss.lambda_labelled * loss, metrics={"labelled_loss": loss.detach(), **metrics}
        )

    def pseudo_loss(
        self,
        logit_B2HW: Tensor,
        label_BHW: Tensor,
        pixel_weight_BHW: Tensor | None = None,
        weight_B: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the strong view on hard pseudo-labels, unweighted by lambda_u.

        Args:
            logit_B2HW: Strong view.
            label_BHW: int64 in {0, 1, IGNORE}.
            pixel_weight_BHW: Quality of each pixel's label, see `losses.unsupervised_loss`.
            weight_B: Quality of each sample. The loss stays a mean over all samples.
        """
        config = self.config.loss.unlabelled
        return mean_over_samples(
            *unsupervised_loss(logit_B2HW, label_BHW, config, pixel_weight_BHW), weight_B
        )

    def combine(
        self,
        batch: Batch,
        labelled: tuple[Tensor, dict[str, Tensor]],
        unlabelled: tuple[Tensor, dict[str, Tensor]],
        pseudo: Pseudo,
        **extra: Tensor,
    ) -> StepOutput:
        """`lambda_l * labelled + lambda_u * unlabelled`, with the metrics of both."""
        weight = self.unlabelled_weight(batch.step)
        loss = self.config.loss.lambda_labelled * labelled[0] + weight * unlabelled[0]
        metrics = {
            "labelled_loss": labelled[0].detach(),
            "unlabelled_loss": unlabelled[0].detach(),
            **labelled[1],
            **{f"unlabelled_{name}": value for name, value in unlabelled[1].items()},
            "coverage": (pseudo.label_BHW != IGNORE).float().mean(),
            "foreground": (pseudo.label_BHW == 1).float().mean(),
            **extra,
        }
        return StepOutput(loss=loss, metrics=metrics, pseudo=pseudo)
