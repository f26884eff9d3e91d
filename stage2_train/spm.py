"""Semantic prior modulation (eq. 4-6): fuse the frozen prior with the network's own weak-view prediction.

Axes: B samples, H x W pixels. Every map is a foreground probability in [0, 1].

    Eq. 4  C(p) = (2p - 1)^2                                       certainty
    Eq. 5  lam(u) = clamp01(0.25 + 0.40 C(P†(u)) - 0.25 C(Pw(u)) + 0.20 (W(Pw, P†) - 0.5))
           W(a, b) = mean_u (1 - |a(u) - b(u)|)                    agreement
    Eq. 6  P̃†(u) = sigmoid(lam logit P†(u) + (1 - lam) logit Pw(u))

Known limit: lam stays below 0.65 + 0.1, so a confidently wrong Pw is not overruled (P† = .98 against Pw = .02 fuses
below one half).

Beyond the paper, off unless asked for. Prior and prediction need not be equally confident inside their masks:
`prior_sharpness` multiplies the prior's logit before anything else, and a larger `eps` bounds what either map can say.
`equalise` does both by what the two maps of a sample show, without a number to tune:

    m(P) = mean of logit P(u) over P(u) > 1/2                      confidence of the foreground
    M    = max(m(P†), m(Pw))
    logit P†(u) <- clamp(max(1, m(Pw) / m(P†)) logit P†(u), -M, M),   logit Pw(u) <- clamp(logit Pw(u), -M, M)

With the paper's coefficients two maps that are equally certain and mostly agree have lam = 0.25 + 0.40 - 0.25 +
0.20 * 0.5 = 0.5, so where they contradict each other the fused map is near one half, which is taught as neither. A
network that is less confident than the prior is not raised: it has not learnt enough yet.

`confidence_gain` moves lam by gain * (trust - centre), where trust is the rank of the frozen model's confidence in a
row's answer among those of the train split.
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
    """How much the prior's weight lam rises with its own certainty C(P†)."""
    weak_certainty: float = 0.25
    """How much lam falls with the certainty C(Pw) of the prediction for the weak view."""
    agreement: float = 0.20
    """How much lam rises with the agreement W of the two maps above `agreement_centre`."""
    agreement_centre: float = 0.5
    """Agreement that changes nothing."""
    eps: float = 1e-4
    """Probabilities are clamped to [eps, 1 - eps] before the logit."""
    prior_sharpness: float = 1.0
    """Factor on logit P†; above 1 for a mask proposer that is under-confident inside its masks (the paper: 1)."""
    equalise: bool = False
    """Raise the prior of each sample to the prediction's confidence where it is below, and let neither map say more
    (the paper: no)."""
    confidence_gain: float = 0.0
    """How much lam rises from the least to the most confident answer of the training rows (the paper: 0)."""
    confidence_centre: float = 0.5
    """Rank of a row's confidence in [0, 1] that changes nothing."""

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


def foreground_confidence(prob_B1HW: Tensor) -> Tensor:
    """Mean logit of what a map [B, 1, H, W] calls foreground; returns [B] above 0, NaN where that is nothing."""
    is_foreground_B1HW = prob_B1HW > 0.5
    total_B = (torch.logit(prob_B1HW, eps=PRIOR_EPS) * is_foreground_B1HW).flatten(1).sum(dim=1)
    return total_B / is_foreground_B1HW.flatten(1).sum(dim=1)


def equalised(prior_B1HW: Tensor, weak_B1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps equally confident, sample by sample: the prior raised to the prediction, then both bounded by M.

    A map without foreground has no m: the other's bounds both, and where both have none nothing changes.
    """
    prior_B, weak_B = foreground_confidence(prior_B1HW), foreground_confidence(weak_B1HW)
    factor_B111 = (weak_B / prior_B).nan_to_num(nan=1.0).clamp(min=1.0)[:, None, None, None]
    most_B111 = torch.fmax(prior_B, weak_B).nan_to_num(nan=torch.inf)[:, None, None, None]
    logits = factor_B111 * torch.logit(prior_B1HW, eps=PRIOR_EPS), torch.logit(weak_B1HW, eps=PRIOR_EPS)
    prior_B1HW, weak_B1HW = (torch.sigmoid(logit_B1HW.clamp(-most_B111, most_B111)) for logit_B1HW in logits)
    return prior_B1HW, weak_B1HW


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
    if config.equalise:
        prior_B1HW, weak_B1HW = equalised(prior_B1HW, weak_B1HW)
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
