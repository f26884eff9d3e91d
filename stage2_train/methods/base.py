"""What training methods share: the networks of a step, the pieces of a loss, and the interface of a method.

Legend: B samples, H W model input, T tokens, K candidate texts.
Invariant: losses are means over samples of each sample's own loss, so a sample's gradient does not depend on its
neighbours, and k micro-batches of b equal one batch of k*b (batch norms aside).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import DataError
from shared.types import Sample
from stage2_train.backbones.images import normalise_image
from stage2_train.batch import Batch, LabelledPart, UnlabelledPart
from stage2_train.branch import BranchMaps
from stage2_train.config import TrainConfig
from stage2_train.losses import IGNORE, supervised_loss, unsupervised_loss
from stage2_train.text_augment import choose_candidate


@dataclass(frozen=True, kw_only=True)
class Pseudo:
    """What a method makes of the unlabelled samples of a micro-batch, for the log and for export."""

    samples: tuple[Sample, ...]
    """The samples."""
    flip_B: Tensor
    """Bool: mirrored."""
    weak_B1HW: Tensor
    """Pw."""
    prior_B1HW: Tensor | None
    """P†, where the method reads one."""
    target_B1HW: Tensor
    """The map that pseudo-labels were cut from."""
    label_BHW: Tensor
    """int64 in {0, 1, IGNORE}."""


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """One micro-batch's loss."""

    loss: Tensor
    """Scalar with gradient."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars, means over the micro-batch; the same names at every step that is of the same samples."""
    pseudo: Pseudo | None = None
    """None where no unlabelled sample took part."""


class Networks:
    """The student, and whoever predicts the weak view."""

    def __init__(self, student: Any, teacher: Any = None, weak_eval: bool = True) -> None:
        """Segmentors, compiled or not; `teacher` None lets the student predict its own weak view."""
        self.student, self.teacher, self.weak_eval = student, teacher, weak_eval

    @torch.no_grad()
    def weak_prob(self, image_BHW3: Tensor, ids_BT: Tensor, token_mask_BT: Tensor) -> Tensor:
        """Pw: f32 [B,1,H,W] from a pass without gradient and without a prior field; images are u8."""
        model = self.student if self.teacher is None else self.teacher
        with _mode(model, training=model.training and not self.weak_eval):
            logit_B2HW = model(normalise_image(image_BHW3), ids_BT, token_mask_BT)
        return logit_B2HW.float().softmax(1)[:, 1:]

    def logit(
        self,
        image_BHW3: Tensor,
        ids_BT: Tensor,
        token_mask_BT: Tensor,
        field_B1HW: Tensor | None = None,
        field_rows_F: Tensor | None = None,
    ) -> Tensor:
        """The student's f32 logits [B,2,H,W] with gradient; images are u8."""
        if field_B1HW is None:
            return self.student(normalise_image(image_BHW3), ids_BT, token_mask_BT).float()
        return self.student(
            normalise_image(image_BHW3), ids_BT, token_mask_BT, field_B1HW, field_rows_F
        ).float()

    def branches(self, image_BHW3: Tensor, ids_BT: Tensor, token_mask_BT: Tensor) -> BranchMaps:
        """Both branches of the student with gradient; images are u8."""
        return self.student.both_branches(normalise_image(image_BHW3), ids_BT, token_mask_BT)

    @torch.no_grad()
    def weak_branches(self, image_BHW3: Tensor, ids_BT: Tensor, token_mask_BT: Tensor) -> list[Tensor]:
        """Pw of the student's two branches, f32 [B,1,H,W] each; otherwise as `weak_prob`."""
        with _mode(self.student, training=self.student.training and not self.weak_eval):
            maps = self.branches(image_BHW3, ids_BT, token_mask_BT)
        return [
            logit_B2HW.float().softmax(1)[:, 1:]
            for logit_B2HW in (maps.first_logit_B2HW, maps.second_logit_B2HW)
        ]

    @torch.no_grad()
    def strong_text(self, part: UnlabelledPart, similarity: float) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the strong text of each sample by the student's own text embeddings.

        Returns:
            (ids_BT, token_mask_BT, share of candidates that survived the filter, a scalar).
        """
        batch, num_texts = part.candidate_ids_BKT.shape[:2]
        if num_texts == 1:
            return part.candidate_ids_BKT[:, 0], part.candidate_mask_BKT[:, 0], torch.ones(())
        with _mode(self.student, training=False):
            flat = self.student.text_embedding(
                part.candidate_ids_BKT.flatten(0, 1), part.candidate_mask_BKT.flatten(0, 1)
            )
        index_B, survivors_B = choose_candidate(
            flat.unflatten(0, (batch, num_texts)), part.choice_uniform_B, similarity
        )
        rows_B = torch.arange(batch, device=index_B.device)
        share = survivors_B.float().mean() / num_texts
        return part.candidate_ids_BKT[rows_B, index_B], part.candidate_mask_BKT[rows_B, index_B], share


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in the wanted mode, put back afterwards."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


class Method:
    """A rule that turns a micro-batch into a loss.

    Subclasses override `loss`, and `pseudo` if they teach unlabelled samples, `labelled_only` where their labelled pass
    is not the plain one; those that learn something of their own also override the other three.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Keep the config."""
        self.config = config

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """The loss of one micro-batch."""
        raise NotImplementedError

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

    def labelled_loss(self, logit_B2HW: Tensor, part: LabelledPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Supervised loss of the labelled samples, unweighted by lambda_l."""
        weights = self.config.loss.class_weights
        loss, metrics = per_sample(
            lambda logit, target: supervised_loss(logit, target, weights), logit_B2HW, part.target_BHW
        )
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
        weights = () if pixel_weight_BHW is None else (pixel_weight_BHW,)
        return per_sample(
            lambda logit, label, *weight: unsupervised_loss(logit, label, config, *weight),
            logit_B2HW,
            label_BHW,
            *weights,
            weight_B=weight_B,
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
            **{
                f"unlabelled_{name}": value for name, value in unlabelled[1].items() if name in ("ce", "dice")
            },
            "coverage": (pseudo.label_BHW != IGNORE).float().mean(),
            "foreground": (pseudo.label_BHW == 1).float().mean(),
            **extra,
        }
        return StepOutput(loss=loss, metrics=metrics, pseudo=pseudo)


def per_sample(
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], *tensors: Tensor, weight_B: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over samples of a loss that would otherwise normalise over the whole batch; metrics likewise.

    Args:
        loss: Loss and metrics of one sample, given each tensor's row with its axis kept.
        *tensors: [B, ...] each.
        weight_B: Factor of each sample's loss; metrics are not weighted, and the mean is over all samples.
    """
    results = [loss(*(tensor[i : i + 1] for tensor in tensors)) for i in range(len(tensors[0]))]
    loss_B = torch.stack([value for value, _ in results])
    if weight_B is not None:
        loss_B = loss_B * weight_B
    names = results[0][1]
    return loss_B.mean(), {name: torch.stack([m[name] for _, m in results]).mean() for name in names}


def join_texts(*texts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenate (ids_BT, token_mask_BT) pairs of different T; the shorter are padded with masked zeros."""
    longest = max(ids.shape[1] for ids, _ in texts)
    padded = [[torch.nn.functional.pad(t, (0, longest - t.shape[1])) for t in pair] for pair in texts]
    return torch.cat([pair[0] for pair in padded]), torch.cat([pair[1] for pair in padded])


def joint_logits(
    networks: Networks,
    labelled: LabelledPart,
    unlabelled: UnlabelledPart,
    strong_text: tuple[Tensor, Tensor],
    field_B1HW: Tensor | None = None,
    field_rows_F: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass with gradient over labelled weak views and unlabelled strong views, labelled first.

    Returns:
        Logits [B_labelled,2,H,W] and [B_unlabelled,2,H,W].
    """
    ids_BT, token_mask_BT = join_texts((labelled.ids_BT, labelled.token_mask_BT), strong_text)
    image_BHW3 = torch.cat((labelled.image_BHW3, unlabelled.strong_BHW3))
    logit_B2HW = networks.logit(image_BHW3, ids_BT, token_mask_BT, field_B1HW, field_rows_F)
    num = len(labelled.samples)
    return logit_B2HW[:num], logit_B2HW[num:]


def pseudo_of(
    part: UnlabelledPart,
    weak_B1HW: Tensor,
    label_BHW: Tensor,
    target_B1HW: Tensor | None = None,
    prior_B1HW: Tensor | None = None,
) -> Pseudo:
    """The record of some samples: labels were cut from Pw unless a target is given; a prior is one that was read."""
    return Pseudo(
        samples=part.samples,
        flip_B=part.flip_B,
        weak_B1HW=weak_B1HW,
        prior_B1HW=prior_B1HW,
        target_B1HW=weak_B1HW if target_B1HW is None else target_B1HW,
        label_BHW=label_BHW,
    )


def mask_iou(a_BHW: Tensor, b_BHW: Tensor) -> Tensor:
    """f32 [B]: IoU of boolean masks; two empty masks, which agree on nothing found, have 0."""
    inter_B = (a_BHW & b_BHW).flatten(1).sum(1)
    union_B = (a_BHW | b_BHW).flatten(1).sum(1)
    return inter_B / union_B.clamp(min=1)


def foreground_prob(logit_B2HW: Tensor) -> Tensor:
    """f32 [B,H,W]: the foreground probability of logits, detached."""
    return logit_B2HW.detach().float().softmax(1)[:, 1]


def confident_label(prob_B1HW: Tensor, threshold: float) -> Tensor:
    """int64 [B,H,W]: 1 where p >= threshold, 0 where 1-p >= threshold, IGNORE elsewhere (0.5 counts as 1)."""
    prob_BHW = prob_B1HW[:, 0]
    label_BHW = torch.full(prob_BHW.shape, IGNORE, dtype=torch.int64, device=prob_BHW.device)
    label_BHW[1.0 - prob_BHW >= threshold] = 0
    label_BHW[prob_BHW >= threshold] = 1
    return label_BHW


def weak_text(part: UnlabelledPart) -> tuple[Tensor, Tensor]:
    """(ids_BT, token_mask_BT) of the weak view: the first candidate."""
    return part.candidate_ids_BKT[:, 0], part.candidate_mask_BKT[:, 0]


def known_prior(part: LabelledPart | UnlabelledPart, weak_B1HW: Tensor) -> Tensor:
    """P† where the row has a proposal, Pw where it has none: a missing proposal is no information."""
    has_prior_B = declared(part.has_prior_B, "reads_prior")
    return torch.where(has_prior_B[:, None, None, None], declared(part.prior_B1HW, "reads_prior"), weak_B1HW)


def declared(tensor: Tensor | None, fact: str) -> Tensor:
    """A tensor of a batch that is read for some methods alone.

    Args:
        tensor: Where the method asks for it, not None.
        fact: The field of `MethodFacts` that asks for it.

    Raises:
        DataError: It is not there: the method reads what `METHOD_FACTS` does not say it reads.
    """
    if tensor is None:
        raise DataError(
            f"the method reads what the batch was not given: set {fact}=True for it in METHOD_FACTS of "
            "stage2_train/config.py"
        )
    return tensor
