"""The networks of a step and their passes: the student, and whoever predicts the weak view.

Legend: B samples, H W model input, T tokens, K candidate texts, F samples that see a field.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stage2_train.backbones.images import normalise_image
from stage2_train.batch import LabelledPart, UnlabelledPart
from stage2_train.branch import BranchMaps
from stage2_train.text_augment import choose_candidate


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


def join_texts(*texts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenate (ids_BT, token_mask_BT) pairs of different T; the shorter are padded with masked zeros."""
    longest = max(ids.shape[1] for ids, _ in texts)
    padded = [[torch.nn.functional.pad(t, (0, longest - t.shape[1])) for t in pair] for pair in texts]
    return torch.cat([pair[0] for pair in padded]), torch.cat([pair[1] for pair in padded])


def weak_text(part: UnlabelledPart) -> tuple[Tensor, Tensor]:
    """(ids_BT, token_mask_BT) of the weak view: the first candidate."""
    return part.candidate_ids_BKT[:, 0], part.candidate_mask_BKT[:, 0]
