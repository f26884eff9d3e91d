"""What a change of thresholds gained (eq. 10-12).

Axes: B samples, H x W pixels, U = H W.

    M     = mean over selected u of sigmoid(beta (v_u . c_own - v_u . c_other))        margin between the classes
    K     = mean over selected u of 1 - |Pw(u) - P̃†(u)|                                consistency
    C     = r_pos + r_neg                                                              coverage
    gain  = 1.0 (M' - M) + 0.3 (K' - K) + 0.2 (C' - C) - 0.05 |a_t - a_(t-1)|_1        primed: new thresholds
    R     = clip(gain, -0.5, 0.5)

v_u = [1 - Pw(u), Pw(u)] normalised to length 1; c_k the normalised sum of v_u over the pixels of class k. OURS: a
class without pixels has the zero vector as centre; nothing selected gives M = K = 0.

Beyond the paper, `balanced`: a mean over pixels is one over background where objects are small, and then says that a
high tau_fg, which gives objects up, is best. Balanced, each class counts alike: M and K are means of the two classes'
own means (0 for a class without pixels), C the mean of the selected shares of {P̃† >= 0.5} and of its complement.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import DataError
from stage2_train.constants import constant


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Weights of the gain."""

    margin: float = 1.0
    """Weight of the gain M' - M in margin: how far apart the two classes of the pseudo-labels lie."""
    consistency: float = 0.3
    """Weight of the gain K' - K in consistency: how near prediction and fused prior are on the labelled pixels."""
    coverage: float = 0.2
    """Weight of the gain C' - C in coverage: the share of pixels that get a label."""
    instability: float = 0.05
    """Price of moving the thresholds, per unit of L1 distance."""
    beta: float = 5.0
    """Sharpness of the margin's sigmoid."""
    clip: float = 0.5
    """Largest absolute reward."""
    balanced: bool = False
    """Whether foreground and background count alike, however many pixels each has; False is the paper's rule."""

    def __post_init__(self) -> None:
        """Check the clip."""
        if self.clip <= 0:
            raise DataError(f"reward.clip is {self.clip}; it must be positive")


def quality(
    weak_B1HW: Tensor, fused_B1HW: Tensor, label_BHW: Tensor, beta: float, balanced: bool = False
) -> Tensor:
    """(M, K, C) of a labelling, or of several labellings of the same maps.

    Args:
        weak_B1HW: Pw.
        fused_B1HW: P̃†.
        label_BHW: int64 [..., B, H, W] of 0, 1, `losses.IGNORE`; axes in front tell labellings apart.
        beta: Sharpness of M.
        balanced: Whether both classes count alike.

    Returns:
        [..., B, 3], each in [0, 1].
    """
    weak_BU, fused_BU, label_BU = weak_B1HW.flatten(1), fused_B1HW.flatten(1), label_BHW.flatten(-2)
    length_BU = torch.sqrt(weak_BU**2 + (1.0 - weak_BU) ** 2)  # at least sqrt(1/2)
    feature_BU = ((1.0 - weak_BU) / length_BU, weak_BU / length_BU)
    member_BU = tuple((label_BU == value).to(weak_BU.dtype) for value in (0, 1))
    background_B2, foreground_B2 = (_centre(member, feature_BU) for member in member_BU)
    apart_B21 = (foreground_B2 - background_B2).unsqueeze(-1)
    towards_BU = feature_BU[0] * apart_B21[..., 0, :] + feature_BU[1] * apart_B21[..., 1, :]
    margin_BU = torch.sigmoid(beta * towards_BU * (member_BU[1] - member_BU[0]))
    consistency_BU = 1.0 - (weak_BU - fused_BU).abs()
    selected_BU = member_BU[0] + member_BU[1]
    if balanced:
        side_BU = tuple(side.to(weak_BU.dtype) for side in (fused_BU < 0.5, fused_BU >= 0.5))
        groups = ((margin_BU, member_BU), (consistency_BU, member_BU), (selected_BU, side_BU))
        means = [
            torch.stack([_mean_over(one, value) for one in members]).mean(0) for value, members in groups
        ]
        return torch.stack(means, dim=-1)
    return torch.stack(
        (
            _mean_over(selected_BU, margin_BU),
            _mean_over(selected_BU, consistency_BU),
            selected_BU.mean(dim=-1),
        ),
        dim=-1,
    )


def _centre(member_BU: Tensor, feature_BU: tuple[Tensor, Tensor]) -> Tensor:
    """c_k [..., B, 2]; zero for a class without pixels."""
    return F.normalize(torch.stack([(member_BU * one).sum(dim=-1) for one in feature_BU], dim=-1), dim=-1)


def _mean_over(member_BU: Tensor, value_BU: Tensor) -> Tensor:
    """Mean of a value over the pixels of a group, 0 for a group without any; [..., B]."""
    return (member_BU * value_BU).sum(dim=-1) / member_BU.sum(dim=-1).clamp(min=1.0)


def reward(
    before_B3: Tensor, after_B3: Tensor, previous_BA: Tensor, action_BA: Tensor, config: RewardConfig
) -> Tensor:
    """Clipped gain.

    Args:
        before_B3: `quality` under the previous thresholds.
        after_B3: `quality` of the same samples under the new ones.
        previous_BA: a_(t-1).
        action_BA: a_t.
        config: Weights.

    Returns:
        R [B] in [-clip, clip].
    """
    weight_3 = constant((config.margin, config.consistency, config.coverage), before_B3)
    moved_B = (action_BA - previous_BA).abs().sum(dim=1)
    gain_B = ((after_B3 - before_B3) * weight_3).sum(dim=1) - config.instability * moved_B
    return gain_B.clamp(-config.clip, config.clip)
