"""Semantic prior modulation (eq. 4-6): fuse the frozen prior with the network's own weak-view prediction.

Axes: B samples, H x W pixels. Every map is a foreground probability in [0, 1].

    Eq. 4  C(p) = (2p - 1)^2                                       certainty
    Eq. 5  lam(u) = clamp01(0.25 + 0.40 C(P†(u)) - 0.25 C(Pw(u)) + 0.20 (W(Pw, P†) - 0.5))
           W(a, b) = mean_u (1 - |a(u) - b(u)|)                    agreement
    Eq. 6  P̃†(u) = sigmoid(lam logit P†(u) + (1 - lam) logit Pw(u))

Known limit: lam stays below 0.65 + 0.1, so a confidently wrong Pw is not overruled (P† = .98 against Pw = .02 fuses
below one half).

Beyond the paper, off unless asked for. The two witnesses need not be equally bold: `prior_sharpness` multiplies the
prior's logit before anything else, and a larger `eps` bounds what either can say. And the frozen model knows which of
its answers to trust: `confidence_gain` moves lam by gain * (trust - centre), where trust is the rank of a row's
confidence among those of the train split.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.errors import DataError

PRIOR_EPS = 1e-4
"""Stored priors of 8 bits reach 0 and 1; clamped so before they are sharpened."""


@dataclass(frozen=True, kw_only=True)
class SpmConfig:
    """Coefficients of eq. 5 and 6."""

    base: float = 0.25
    """Weight of the prior where nothing is certain."""
    prior_certainty: float = 0.40
    """Gain with the prior's certainty C(P†)."""
    weak_certainty: float = 0.25
    """Loss with the weak prediction's certainty C(Pw)."""
    agreement: float = 0.20
    """Gain with the agreement W above `agreement_centre`."""
    agreement_centre: float = 0.5
    """Agreement that changes nothing."""
    eps: float = 1e-4
    """Probabilities are clamped to [eps, 1 - eps] before the logit."""
    prior_sharpness: float = 1.0
    """Factor on logit P†; above 1 for a mask proposer that is timid inside its own masks (the paper: 1)."""
    confidence_gain: float = 0.0
    """How much lam rises from the least to the most trusted training row (the paper: 0)."""
    confidence_centre: float = 0.5
    """Trust in [0, 1] that changes nothing."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.eps < 0.5:
            raise DataError(f"spm.eps is {self.eps}; it must be in (0, 0.5)")
        if self.prior_sharpness <= 0:
            raise DataError(f"spm.prior_sharpness is {self.prior_sharpness}; it must be above 0")
        if not 0 <= self.confidence_centre <= 1:
            raise DataError(f"spm.confidence_centre is {self.confidence_centre}, not in [0,1]")


def certainty(prob: Tensor) -> Tensor:
    """Eq. 4: 0 at one half, 1 at both ends; any shape."""
    return (2.0 * prob - 1.0) ** 2


def agreement(a_prob: Tensor, b_prob: Tensor) -> Tensor:
    """W: one minus the mean absolute difference of two maps [B, ...]; returns [B] in [0, 1]."""
    return 1.0 - (a_prob - b_prob).abs().flatten(1).mean(dim=1)


def fuse(
    prior_B1HW: Tensor, weak_B1HW: Tensor, config: SpmConfig, trust_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Eq. 5 and 6.

    Args:
        prior_B1HW: P†.
        weak_B1HW: Pw, detached by the caller.
        config: Coefficients.
        trust_B: Rank in [0, 1] of the frozen model's confidence, NaN where it is not known; needed with a
            `confidence_gain` alone.

    Returns:
        fused_B1HW: P̃† in [eps, 1 - eps].
        lam_B1HW: Weight of the prior in [0, 1].
    """
    if config.prior_sharpness != 1.0:
        prior_B1HW = torch.sigmoid(config.prior_sharpness * torch.logit(prior_B1HW, eps=PRIOR_EPS))
    agreement_B111 = agreement(prior_B1HW, weak_B1HW)[:, None, None, None]
    lam_B1HW = (
        config.base
        + config.prior_certainty * certainty(prior_B1HW)
        - config.weak_certainty * certainty(weak_B1HW)
        + config.agreement * (agreement_B111 - config.agreement_centre)
    )
    if config.confidence_gain:
        assert trust_B is not None
        moved_B = config.confidence_gain * (trust_B - config.confidence_centre)
        lam_B1HW = lam_B1HW + moved_B.nan_to_num(nan=0.0)[:, None, None, None]
    lam_B1HW = lam_B1HW.clamp(0.0, 1.0)
    prior_logit_B1HW = torch.logit(prior_B1HW, eps=config.eps)
    weak_logit_B1HW = torch.logit(weak_B1HW, eps=config.eps)
    fused_B1HW = torch.sigmoid(lam_B1HW * prior_logit_B1HW + (1.0 - lam_B1HW) * weak_logit_B1HW)
    return fused_B1HW, lam_B1HW
