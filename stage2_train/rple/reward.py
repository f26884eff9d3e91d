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
from stage2_train.losses import IGNORE


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Weights of the gain."""

    margin: float = 1.0
    """Weight of M' - M."""
    consistency: float = 0.3
    """Weight of K' - K."""
    coverage: float = 0.2
    """Weight of C' - C."""
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
    """(M, K, C) of a labelling.

    Args:
        weak_B1HW: Pw.
        fused_B1HW: P̃†.
        label_BHW: int64 of 0, 1, `IGNORE`.
        beta: Sharpness of M.
        balanced: Whether both classes count alike.

    Returns:
        [B, 3], each in [0, 1].
    """
    weak_BU, fused_BU, label_BU = weak_B1HW.flatten(1), fused_B1HW.flatten(1), label_BHW.flatten(1)
    feature_BU2 = F.normalize(torch.stack((1.0 - weak_BU, weak_BU), dim=2), dim=2)
    member_BUK = torch.stack((label_BU == 0, label_BU == 1), dim=2).to(feature_BU2.dtype)
    centre_BK2 = F.normalize(torch.einsum("buk,buf->bkf", member_BUK, feature_BU2), dim=2)
    similarity_BUK = torch.einsum("buf,bkf->buk", feature_BU2, centre_BK2)
    lead_BU = (similarity_BUK[..., 1] - similarity_BUK[..., 0]) * (2.0 * member_BUK[..., 1] - 1.0)
    selected_BU = (label_BU != IGNORE).to(feature_BU2.dtype)
    if balanced:
        found_BU2 = torch.stack((torch.sigmoid(beta * lead_BU), 1.0 - (weak_BU - fused_BU).abs()), dim=2)
        side_BUK = torch.stack((fused_BU < 0.5, fused_BU >= 0.5), dim=2).to(feature_BU2.dtype)
        margin_consistency_B2 = _mean_of_groups(found_BU2, member_BUK)
        return torch.cat((margin_consistency_B2, _mean_of_groups(selected_BU.unsqueeze(2), side_BUK)), dim=1)
    count_B = selected_BU.sum(dim=1)
    margin_B = (torch.sigmoid(beta * lead_BU) * selected_BU).sum(dim=1) / count_B.clamp(min=1.0)
    consistency_B = ((1.0 - (weak_BU - fused_BU).abs()) * selected_BU).sum(dim=1) / count_B.clamp(min=1.0)
    return torch.stack((margin_B, consistency_B, selected_BU.mean(dim=1)), dim=1)


def _mean_of_groups(value_BUF: Tensor, member_BUK: Tensor) -> Tensor:
    """Mean over groups of each group's mean over its pixels, 0 for a group without any; [B, F]."""
    sum_BKF = torch.einsum("buk,buf->bkf", member_BUK, value_BUF)
    return (sum_BKF / member_BUK.sum(dim=1).clamp(min=1.0).unsqueeze(2)).mean(dim=1)


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
    weight_3 = before_B3.new_tensor((config.margin, config.consistency, config.coverage))
    moved_B = (action_BA - previous_BA).abs().sum(dim=1)
    gain_B = ((after_B3 - before_B3) * weight_3).sum(dim=1) - config.instability * moved_B
    return gain_B.clamp(-config.clip, config.clip)
