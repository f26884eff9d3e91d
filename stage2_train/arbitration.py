"""Fusing a calibrated prior with the network's prediction by how often each has been right (an alternative to SPM).

SPM (eq. 5) gives prior and prediction nearly equal weight wherever both are certain, whoever tends to be right: where
they disagree its best outcome is an ignored pixel. Here both are taken for independent witnesses of the same pixel,

    logit P̃†(u) = logit P'(u) + logit Pw'(u) - logit rho         Pw' = r Pw + (1 - r) rho

P' is the calibrated prior (`calibration`), whose largest value is its chance q of pointing at the right object, and r
the chance that Pw does. r is not known, but agreement with the prior tells: two witnesses agree on an object when both
are right and (almost) never otherwise, so r = P(agree) / mean q, followed over training. Early on the prior teaches;
once the network is right more often than a doubtful prior, it overrules it.

Axes: B samples, H x W pixels. Maps are foreground probabilities in [0, 1].
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DECAY = 0.95
"""Of the running sums, per step."""

START_SUMS = (1.0, 2.0, 0.1, 2.0)
"""Sums before anything was seen: two samples of q = 1, one agreement, foreground of 5% (ours)."""

R_RANGE = (0.05, 0.98)
"""Bounds of r: the network is never certain, and never ignored."""

AGREE_IOU = 0.5
"""Least overlap that counts as pointing at the same object."""


class Arbiter:
    """Running estimates of r and rho; their state travels with checkpoints."""

    def __init__(self) -> None:
        """Start undecided: r = 0.5."""
        self.sums_4 = torch.tensor(START_SUMS)
        """Decayed sums over samples: agreements, q, foreground share of P', ones."""
        self._pending: list[Tensor] = []

    @property
    def weak_reliability(self) -> float:
        """The value of r in force."""
        low, high = R_RANGE
        return min(max(float(self.sums_4[0] / self.sums_4[1]), low), high)

    @property
    def base_rate(self) -> float:
        """The value of rho in force."""
        return float(self.sums_4[2] / self.sums_4[3])

    def fuse(self, prior_B1HW: Tensor, weak_B1HW: Tensor, eps: float) -> Tensor:
        """P̃† of P' and Pw, each clamped to [eps, 1 - eps]; changes nothing."""
        r, rho = self.weak_reliability, self.base_rate
        tempered_B1HW = r * weak_B1HW + (1.0 - r) * rho
        logit_B1HW = torch.logit(prior_B1HW, eps=eps) + torch.logit(tempered_B1HW, eps=eps)
        return torch.sigmoid(logit_B1HW - torch.logit(torch.tensor(rho), eps=eps).to(prior_B1HW.device))

    def observe(self, prior_B1HW: Tensor, weak_B1HW: Tensor, has_prior_B: Tensor) -> None:
        """Keep what a micro-batch shows until the step ends; rows without a prior do not count."""
        prior_BU, weak_BU = prior_B1HW.flatten(1), weak_B1HW.flatten(1)
        q_B = prior_BU.amax(1)
        first_BU, second_BU = prior_BU >= q_B[:, None] / 2, weak_BU >= 0.5
        union_B = (first_BU | second_BU).sum(1).clamp(min=1)
        agree_B = ((first_BU & second_BU).sum(1) / union_B >= AGREE_IOU).float()
        rows_B4 = torch.stack((agree_B, q_B, prior_BU.mean(1), torch.ones_like(q_B)), dim=1)
        self._pending.append(rows_B4 * has_prior_B[:, None])

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Take the whole global mini-batch into the sums."""
        rows_B4 = torch.cat([gather(block) for block in self._pending]).detach().float().cpu()
        self._pending.clear()
        self.sums_4 = DECAY * self.sums_4 + rows_B4.sum(0)
        return {"weak_reliability": self.weak_reliability}

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {"sums": self.sums_4.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self.sums_4 = state["sums"].clone()
