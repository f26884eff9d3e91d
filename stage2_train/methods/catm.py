"""CATM: class-adaptive thresholds for the maps, the adaptive counterpart of FixMatch's fixed 0.7.

The published formula is not available. OURS: each class k (background, foreground) has a threshold that follows the
network's own confidence in it, so that a class the network is still unsure of is not starved of pseudo-labels:

    conf_k = mean of max(Pw, 1 - Pw) over the pixels that Pw puts in class k, over the step's whole global batch
    tau_k <- clip(m tau_k + (1 - m) conf_k, lowest, highest)           once after each optimiser step

Foreground where Pw >= tau_1, background where 1 - Pw >= tau_0. A class without pixels keeps its threshold.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stage2_train.batch import Batch, UnlabelledPart
from stage2_train.config import CatmConfig, TrainConfig
from stage2_train.losses import IGNORE
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks, weak_text
from stage2_train.pseudo_labels import Pseudo, pseudo_of


class Catm(Method):
    """FixMatch with a learnt threshold for each class.

    Attributes:
        threshold_2: tau of background and foreground, on the CPU.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Start at `catm.start`."""
        super().__init__(config)
        self.threshold_2 = torch.full((2,), config.catm.start)
        self._sums: list[Tensor] = []

    def loss(self, networks: Networks, batch: Batch) -> StepOutput:
        """See `Method.loss`."""
        part = batch.unlabelled
        assert part is not None
        pseudo = self.pseudo(networks, part)
        self._sums.append(confidence_sums(pseudo.weak_B1HW))
        return self.teach(networks, batch, pseudo)

    def pseudo(self, networks: Networks, part: UnlabelledPart) -> Pseudo:
        """See `Method.pseudo`."""
        weak_B1HW = networks.weak_prob(part.weak_BHW3, *weak_text(part))
        return pseudo_of(part, weak_B1HW, class_label(weak_B1HW, self.threshold_2))

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Move the thresholds by the global batch's confidence; a step that taught nothing leaves them."""
        if self._sums:
            sums_B22 = torch.cat([gather(block) for block in self._sums]).cpu()
            self._sums.clear()
            self.threshold_2 = follow(self.threshold_2, sums_B22, self.config.catm)
        background, foreground = self.threshold_2.tolist()
        return {"threshold_background": background, "threshold_foreground": foreground}

    def state_dict(self) -> dict[str, Any]:
        """The thresholds."""
        return {"threshold_2": self.threshold_2.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self.threshold_2 = state["threshold_2"].clone()


def class_label(weak_B1HW: Tensor, threshold_2: Tensor) -> Tensor:
    """int64 [B,H,W] in {0, 1, IGNORE}; a pixel that passes both thresholds (0.5 alone can) is foreground."""
    prob_BHW = weak_B1HW[:, 0]
    background, foreground = threshold_2.tolist()
    label_BHW = torch.full(prob_BHW.shape, IGNORE, dtype=torch.int64, device=prob_BHW.device)
    label_BHW[1.0 - prob_BHW >= background] = 0
    label_BHW[prob_BHW >= foreground] = 1
    return label_BHW


def confidence_sums(weak_B1HW: Tensor) -> Tensor:
    """f32 [B,2,2]: for background and foreground, the summed confidence and the number of its pixels."""
    prob_BU = weak_B1HW.flatten(1)
    own_BKU = torch.stack((prob_BU < 0.5, prob_BU >= 0.5), dim=1).to(prob_BU.dtype)
    confidence_BKU = torch.stack((1.0 - prob_BU, prob_BU), dim=1)
    return torch.stack(((own_BKU * confidence_BKU).sum(2), own_BKU.sum(2)), dim=2)


def follow(threshold_2: Tensor, sums_B22: Tensor, config: CatmConfig) -> Tensor:
    """The thresholds after one step; `sums_B22` as `confidence_sums`, over the global batch."""
    total_2, count_2 = sums_B22.sum(0).unbind(1)
    mean_2 = torch.where(count_2 > 0, total_2 / count_2.clamp(min=1), threshold_2)
    moved_2 = config.momentum * threshold_2 + (1.0 - config.momentum) * mean_2
    return torch.where(count_2 > 0, moved_2.clamp(config.lowest, config.highest), threshold_2)
