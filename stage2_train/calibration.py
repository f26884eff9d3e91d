"""Turns the frozen prior's soft masks into probabilities that mean what they say, with the labelled masks alone.

SPM weighs logits, so a soft mask that is too timid (or too sure) loses (or wins) every argument with the network
whatever it is worth. And a prior that points at the wrong object is wrong as a whole, which no pixel of it shows, but
the language model's own confidence does. Both are estimated on the labelled samples:

    q    = P(right object | confidence) = sigmoid(slope z + intercept)     z: confidence, standardised
    P'   = q sigmoid(sharpness logit P†) + (1 - q) rho                      rho: foreground share of the labelled masks

A prior is right where it overlaps its mask with IoU >= 0.5. `sharpness` minimises the pixel cross-entropy of the right
ones. The paper uses P† as it is (`enabled = False`) and names adaptive weighting as future work.

Axes: B samples, G side of the stored grid.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import DataError

RIGHT_IOU = 0.5
"""Least overlap of a prior that points at the right object."""

EPS = 1.0 / 510.0
"""Half a step of the 8-bit store: a stored 0 or 255 stands for a probability this close to the end."""


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Whether and how the prior is calibrated."""

    enabled: bool = False
    """Off: P† as stored (the paper)."""
    max_samples: int = 2000
    """Labelled sentences used, evenly spaced."""
    ridge: float = 1.0
    """Penalty on slope and log sharpness, in samples: with few labels both stay near 'no effect'."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.max_samples < 1 or self.ridge <= 0:
            raise DataError("calibration: max_samples must be at least 1 and ridge above 0")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was estimated; plain numbers, written to the run's `config.json`."""

    num_samples: int
    """Labelled sentences with a proposal that it rests on."""
    right_share: float
    """Share of them whose prior points at the right object, [0, 1]."""
    centre: float
    """Mean confidence of these, natural log."""
    scale: float
    """Its standard deviation."""
    slope: float
    """Gain of log odds per standard deviation of confidence."""
    intercept: float
    """Log odds at mean confidence."""
    sharpness: float
    """Factor on the soft mask's logits; above 1 where it was too timid."""
    base_rate: float
    """rho: mean foreground share of the masks."""

    def reliability(self, confidence_B: Tensor) -> Tensor:
        """P(right object) for each confidence, f32 in [0, 1]; one that is not finite counts as the mean."""
        z_B = torch.nan_to_num((confidence_B.float() - self.centre) / self.scale, 0.0, 0.0, 0.0)
        return torch.sigmoid(self.slope * z_B + self.intercept)

    def apply(self, proposal_BGG: Tensor, confidence_B: Tensor) -> Tensor:
        """P' of stored proposals u8 [B,G,G], again as u8."""
        quality_B11 = self.reliability(confidence_B)[:, None, None]
        sharp_BGG = torch.sigmoid(self.sharpness * _logit(proposal_BGG))
        mixed_BGG = quality_B11 * sharp_BGG + (1.0 - quality_B11) * self.base_rate
        return (255.0 * mixed_BGG).round().to(torch.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def fit(proposal_BGG: Tensor, confidence_B: Tensor, mask_BGG: Tensor, ridge: float) -> Calibration:
    """The estimate itself.

    Args:
        proposal_BGG: u8.
        confidence_B: Natural log, NaN or infinite where unknown.
        mask_BGG: Bool.
        ridge: See `CalibrationConfig`.
    """
    hard_BGG = proposal_BGG >= 128
    union_B = (hard_BGG | mask_BGG).flatten(1).sum(1).clamp(min=1)
    right_B = (hard_BGG & mask_BGG).flatten(1).sum(1) / union_B >= RIGHT_IOU
    finite_B = torch.isfinite(confidence_B)
    known = confidence_B[finite_B].double()
    centre = float(known.mean()) if len(known) else 0.0
    scale = max(float(known.std(correction=0)), 1e-6) if len(known) else 1.0
    z_B = torch.where(finite_B, (confidence_B.double() - centre) / scale, 0.0)
    slope, intercept = _logistic(z_B, right_B.double(), ridge)
    return Calibration(
        num_samples=len(right_B),
        right_share=float(right_B.float().mean()),
        centre=centre,
        scale=scale,
        slope=slope,
        intercept=intercept,
        sharpness=_sharpness(proposal_BGG[right_B], mask_BGG[right_B], ridge),
        base_rate=float(mask_BGG.float().mean()),
    )


def _logistic(z_B: Tensor, right_B: Tensor, ridge: float) -> tuple[float, float]:
    """Slope and intercept of the penalised logistic regression of `right` on `z`.

    Half a right and half a wrong sample are added at the mean, so that neither can be certain.
    """
    z_B = torch.cat((z_B, z_B.new_zeros(2)))
    target_B = torch.cat((right_B, right_B.new_tensor([0.0, 1.0])))
    weight_B = torch.cat((torch.ones_like(right_B), right_B.new_tensor([0.5, 0.5])))

    def loss(theta: Tensor) -> Tensor:
        logit_B = theta[0] * z_B + theta[1]
        entropy_B = F.binary_cross_entropy_with_logits(logit_B, target_B, reduction="none")
        return (weight_B * entropy_B).sum() + 0.5 * ridge * theta[0] ** 2

    slope, intercept = _minimise(loss, torch.zeros(2, dtype=torch.float64)).tolist()
    return slope, intercept


def _sharpness(proposal_BGG: Tensor, mask_BGG: Tensor, ridge: float) -> float:
    """Factor on the logits of least cross-entropy, every sample's foreground and background counting alike."""
    if not len(proposal_BGG):
        return 1.0
    logit_BGG, target_BGG = _logit(proposal_BGG).double(), mask_BGG.double()
    share_B11 = target_BGG.mean((1, 2), keepdim=True).clamp(1e-6, 1 - 1e-6)
    weight_BGG = torch.where(mask_BGG, 0.5 / share_B11, 0.5 / (1 - share_B11)) / mask_BGG[0].numel()

    def loss(theta: Tensor) -> Tensor:
        entropy_BGG = F.binary_cross_entropy_with_logits(
            theta.exp() * logit_BGG, target_BGG, reduction="none"
        )
        return (weight_BGG * entropy_BGG).sum() + 0.5 * ridge * theta[0] ** 2

    return float(_minimise(loss, torch.zeros(1, dtype=torch.float64)).exp())


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimum of a smooth convex function of a few numbers."""
    theta = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([theta], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(theta)
        (theta.grad,) = torch.autograd.grad(value, [theta])
        return value.detach()

    optimizer.step(closure)
    return theta.detach()


def _logit(proposal: Tensor) -> Tensor:
    return torch.logit(proposal.float() / 255.0, eps=EPS)
