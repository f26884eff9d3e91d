"""CCVC (Wang et al., CVPR 2023): two branches teach each other and are kept from becoming one.

The branches are two networks (`stage2_train.branch`). With p_i the weak-view probability of branch i and
y_i = (p_i >= 0.5):

    consistency   branch i is taught every pixel of y_j (j the other) on the strong view; a pixel weighs
                  `conflict_weight` where y_1 != y_2 and branch j is sure of it (max(p_j, 1 - p_j) >=
                  `conflict_confidence`), and 1 elsewhere
    discrepancy   1 + mean cosine of the maps that the branches' last two convolutions read, on labelled weak and
                  unlabelled strong views; mean of two terms that have a gradient to one branch each, as in the
                  released code, which halves the gradient. Neither map is negative, so that it is at least 1
    loss          lambda_l mean_i supervised_i + lambda_u (mean_i consistency_i + `discrepancy` * discrepancy)

Halving the sums over branches, as in the released code, keeps each loss at the size of the other methods'. The first
branch is evaluated (there: the better of either and of their mean, on val). The map of stage 1, which both branches
join last, is no part of the discrepancy.

Left out: consistency and discrepancy on the raw unlabelled view (a third pass with gradient, under labels of its own,
which has as much say as the strong view), and CutMix between unlabelled images (a sample's gradient would depend on
its neighbour).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stage2_train.batch import Batch, LabelledPart, UnlabelledPart
from stage2_train.config import CcvcConfig
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks, join_texts, weak_text
from stage2_train.pseudo_labels import Pseudo, pseudo_of


class Ccvc(Method):
    """Conflict-based cross-view consistency."""

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part, labelled, config = batch.unlabelled, batch.labelled, self.config.ccvc
        assert part is not None
        pseudo = self.pseudo(networks, part)
        weak = pseudo.weak_B1HW, pseudo.target_B1HW
        ids_BT, token_mask_BT, survivors = networks.strong_text(part, self.config.text.similarity)
        text = join_texts((labelled.ids_BT, labelled.token_mask_BT), (ids_BT, token_mask_BT))
        maps = networks.branches(torch.cat((labelled.image_BHW3, part.strong_BHW3)), *text)
        num = len(labelled.samples)
        labels, weights = zip(
            *(taught(weak[1 - branch], weak[branch], config) for branch in (0, 1)), strict=True
        )
        logits = (maps.first_logit_B2HW.float(), maps.second_logit_B2HW.float())
        supervised = self._supervised(*(logit[:num] for logit in logits), part=labelled)
        consistent = [
            self.pseudo_loss(logit[num:], label_BHW, weight_BHW)
            for logit, label_BHW, weight_BHW in zip(logits, labels, weights, strict=True)
        ]
        apart_B = discrepancy(maps.first_BCHW.float(), maps.second_BCHW.float())
        apart = 0.5 * (apart_B[:num].mean() + apart_B[num:].mean())
        unlabelled = 0.5 * (consistent[0][0] + consistent[1][0]) + config.discrepancy * apart
        return self.combine(
            batch,
            supervised,
            (unlabelled, consistent[0][1]),
            pseudo,
            text_survivors=survivors,
            discrepancy=apart.detach(),
            conflict=((weak[0] >= 0.5) != (weak[1] >= 0.5)).float().mean(),
        )

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`: what the second branch teaches the first."""
        first_B1HW, second_B1HW = networks.weak_branches(part.weak_BHW3, *weak_text(part))
        label_BHW, _ = taught(second_B1HW, first_B1HW, self.config.ccvc)
        return pseudo_of(part, first_B1HW, label_BHW, second_B1HW)

    def labelled_only(self, networks: Networks, part: LabelledPart) -> StepOutput:
        """See `Method.labelled_only`: both branches, and nothing that keeps them apart."""
        maps = networks.branches(part.image_BHW3, part.ids_BT, part.token_mask_BT)
        logits = (maps.first_logit_B2HW.float(), maps.second_logit_B2HW.float())
        return self.labelled_output(*self._supervised(*logits, part=part))

    def _supervised(
        self, first_B2HW: Tensor, second_B2HW: Tensor, *, part: LabelledPart
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean supervised loss of the branches, and the metrics of the first."""
        first, metrics = self.labelled_loss(first_B2HW, part)
        return 0.5 * (first + self.labelled_loss(second_B2HW, part)[0]), metrics


def taught(teacher_B1HW: Tensor, own_B1HW: Tensor, config: CcvcConfig) -> tuple[Tensor, Tensor]:
    """What one branch learns from the other.

    Args:
        teacher_B1HW: Weak-view probability of the other branch.
        own_B1HW: That of the branch itself.
        config: Confidence and weight of a conflict.

    Returns:
        int64 labels [B,H,W] in {0,1} and f32 weights [B,H,W].
    """
    teacher_BHW, own_BHW = teacher_B1HW[:, 0], own_B1HW[:, 0]
    label_BHW = teacher_BHW >= 0.5
    sure_BHW = torch.maximum(teacher_BHW, 1.0 - teacher_BHW) >= config.conflict_confidence
    conflict_BHW = (label_BHW != (own_BHW >= 0.5)) & sure_BHW
    return label_BHW.long(), torch.where(conflict_BHW, config.conflict_weight, 1.0)


def discrepancy(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """1 + cosine of two maps over their channels, mean over pixels: [B] in [0, 2], least where they are opposed.

    Each map moves away from the other one held fixed, with half the weight.
    """
    pairs = (first_BCHW.detach(), second_BCHW), (first_BCHW, second_BCHW.detach())
    halves = [0.5 * F.cosine_similarity(*pair, dim=1).flatten(1).mean(1) for pair in pairs]
    return 1.0 + halves[0] + halves[1]
