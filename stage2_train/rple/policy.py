"""States, actions and pseudo-labels of the labelling policy (eq. 7-9), and its two networks.

Axes: B samples, H x W pixels, S = 6 state entries, A = 2 action entries (tau_fg, tau_bg).

    Eq. 7  s = (mean P̃†, std P̃†, r_pos, r_neg, r_ign, W(Pw, P̃†)) under the thresholds in force
    Eq. 8  a = (tau_fg, tau_bg)
    Eq. 9  label(u) = 1 if P̃†(u) >= tau_fg, 0 if P̃†(u) <= tau_bg, ignored otherwise and in a band at boundaries

OURS: each threshold stays on its own side of one half, at least `margin` apart, by construction, in the policy's output
and after exploration noise. Ordering alone (`own_side=false`) is not enough: nearly all pixels are background, so the
reward barely feels the foreground, and a policy that may raise tau_bg does so until objects are taught as background.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import DataError
from stage2_train.losses import IGNORE
from stage2_train.spm import agreement

STATE_DIM, ACTION_DIM, HIDDEN_DIM = 6, 2, 64

PAPER_BAND_PX, PAPER_SIZE_PX = 3, 480
"""Ignored band on each side of a boundary, and the resolution it is meant for."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Where the thresholds start, and where they may go."""

    start_fg: float = 0.70
    """tau_fg before any learning."""
    start_bg: float = 0.20
    """tau_bg before any learning."""
    margin: float = 0.05
    """Least distance between the thresholds (the paper is silent: ours)."""
    own_side: bool = True
    """Whether tau_fg also stays above one half and tau_bg below it (ours); off: they are only ordered."""

    def __post_init__(self) -> None:
        """Check that the start is allowed."""
        if not 0.0 < self.margin < 0.5:
            raise DataError(f"policy.margin is {self.margin}, not between 0 and 0.5")
        if not self.least_fg < self.start_fg < 1.0 or not 0.0 < self.start_bg < self.most_bg(self.start_fg):
            raise DataError(
                f"policy: start_fg {self.start_fg} and start_bg {self.start_bg} are not within what "
                f"margin {self.margin} and own_side {self.own_side} allow"
            )

    @property
    def least_fg(self) -> float:
        """Smallest tau_fg."""
        return 0.5 + self.margin / 2 if self.own_side else self.margin

    def most_bg(self, foreground: Any) -> Any:
        """Largest tau_bg beside a tau_fg, a number or a tensor of them."""
        return 0.5 - self.margin / 2 if self.own_side else foreground - self.margin


def band_px(size_px: int) -> int:
    """The paper's 3-pixel band scaled to another resolution, rounded down (0 below 160 px).

    At small resolutions a whole pixel would remove most of a small object.
    """
    return PAPER_BAND_PX * size_px // PAPER_SIZE_PX


def _mlp(dim_in: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim_in, HIDDEN_DIM),
        nn.ReLU(),
        nn.Linear(HIDDEN_DIM, HIDDEN_DIM),
        nn.ReLU(),
        nn.Linear(HIDDEN_DIM, dim_out),
    )


class Actor(nn.Module):
    """State to thresholds, 6-64-64-2."""

    def __init__(self, config: PolicyConfig) -> None:
        """Start at the configured thresholds for every state, up to a small random tilt."""
        super().__init__()
        self.config = config
        self.net = _mlp(STATE_DIM, ACTION_DIM)
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        foreground, background, least = config.start_fg, config.start_bg, config.least_fg
        shares = ((foreground - least) / (1.0 - least), background / config.most_bg(foreground))
        with torch.no_grad():
            last.weight.mul_(0.01)
            last.bias.copy_(torch.tensor([math.log(share / (1.0 - share)) for share in shares]))

    def forward(self, state_BS: Tensor) -> Tensor:
        """Thresholds [B, 2] within what the config allows."""
        share_BA = torch.sigmoid(self.net(state_BS))
        foreground_B = self.config.least_fg + (1.0 - self.config.least_fg) * share_BA[:, 0]
        background_B = self.config.most_bg(foreground_B) * share_BA[:, 1]
        return torch.stack((foreground_B, background_B), dim=1)


class Critic(nn.Module):
    """State and action to value, 8-64-64-1."""

    def __init__(self, start: float = 1.0) -> None:
        """Draw the weights; those of the last layer are multiplied by `start`."""
        super().__init__()
        self.net = _mlp(STATE_DIM + ACTION_DIM, 1)
        with torch.no_grad():
            for parameter in self.net[-1].parameters():
                parameter.mul_(start)

    def forward(self, state_BS: Tensor, action_BA: Tensor) -> Tensor:
        """Q(s, a), [B]."""
        return self.net(torch.cat((state_BS, action_BA), dim=1)).squeeze(1)


def project_action(action_BA: Tensor, config: PolicyConfig) -> Tensor:
    """Allowed thresholds: tau_fg moved into its range, then tau_bg into what that leaves it."""
    foreground_B = action_BA[:, 0].clamp(config.least_fg, 1.0)
    most = config.most_bg(foreground_B)
    most_B = most if isinstance(most, Tensor) else torch.full_like(foreground_B, most)
    background_B = torch.minimum(action_BA[:, 1].clamp(min=0.0), most_B)
    return torch.stack((foreground_B, background_B), dim=1)


def pseudo_label(fused_B1HW: Tensor, tau_fg_B: Tensor, tau_bg_B: Tensor, band_px: int) -> Tensor:
    """Eq. 9.

    Args:
        fused_B1HW: P̃† in [0, 1].
        tau_fg_B: Foreground thresholds.
        tau_bg_B: Background thresholds, below `tau_fg_B`.
        band_px: Pixels with another region within this Chebyshev distance are ignored; 0 for none.

    Returns:
        int64 [B, H, W] of 0, 1 and `losses.IGNORE`.
    """
    prob_BHW = fused_B1HW[:, 0]
    label_BHW = torch.full(prob_BHW.shape, IGNORE, dtype=torch.int64, device=prob_BHW.device)
    label_BHW[prob_BHW <= tau_bg_B[:, None, None]] = 0
    label_BHW[prob_BHW >= tau_fg_B[:, None, None]] = 1
    if band_px:
        label_BHW[_boundary_band(label_BHW, band_px)] = IGNORE
    return label_BHW


def _boundary_band(label_BHW: Tensor, band_px: int) -> Tensor:
    """Bool [B, H, W]: some pixel within `band_px` belongs to another region (foreground, background, neither)."""
    region_B1HW = torch.where(label_BHW == IGNORE, 0.5, label_BHW.float()).unsqueeze(1)
    window = 2 * band_px + 1
    highest_B1HW = F.max_pool2d(region_B1HW, window, stride=1, padding=band_px)
    lowest_B1HW = -F.max_pool2d(-region_B1HW, window, stride=1, padding=band_px)
    return (highest_B1HW != lowest_B1HW)[:, 0]


def shares(label_BHW: Tensor) -> Tensor:
    """(r_pos, r_neg, r_ign): shares of foreground, background and ignored pixels, [B, 3], summing to 1."""
    return torch.stack(
        [(label_BHW == value).flatten(1).float().mean(dim=1) for value in (1, 0, IGNORE)], dim=1
    )


def state(fused_B1HW: Tensor, weak_B1HW: Tensor, label_BHW: Tensor) -> Tensor:
    """Eq. 7.

    Args:
        fused_B1HW: P̃†.
        weak_B1HW: Pw.
        label_BHW: Its pseudo-labels under the thresholds in force.

    Returns:
        [B, 6], every entry in [0, 1].
    """
    flat_BU = fused_B1HW.flatten(1)
    moments_B2 = torch.stack((flat_BU.mean(dim=1), flat_BU.std(dim=1, correction=0)), dim=1)
    agreement_B1 = agreement(weak_B1HW, fused_B1HW).unsqueeze(1)
    return torch.cat((moments_B2, shares(label_BHW), agreement_B1), dim=1)


def relabelled(state_BS: Tensor, label_BHW: Tensor) -> Tensor:
    """Eq. 7 of the same maps under other pseudo-labels: only the shares change; [B, 6]."""
    return torch.cat((state_BS[:, :2], shares(label_BHW), state_BS[:, 5:]), dim=1)
