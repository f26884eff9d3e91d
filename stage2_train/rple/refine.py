"""One step of reinforced labelling for an unlabelled mini-batch: state, action, pseudo-label, reward, update.

Axes: B samples, H x W pixels, S = 6, A = 2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stage2_train.rple.ddpg import Agent, DdpgConfig
from stage2_train.rple.policy import pseudo_label, state
from stage2_train.rple.reward import RewardConfig, quality, reward


@dataclass(frozen=True, kw_only=True)
class RpleConfig:
    """Policy learning."""

    ddpg: DdpgConfig = field(default_factory=DdpgConfig)
    """The learner."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What it maximises."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What one step decided."""

    label_BHW: Tensor
    """int64 pseudo-labels of 0, 1 and `losses.IGNORE`."""
    thresholds_BA: Tensor
    """(tau_fg, tau_bg) of each sample."""
    reward_B: Tensor
    """Clipped gain over the thresholds in force before."""
    metrics: dict[str, float]
    """Means for the log: `tau_fg`, `tau_bg`, `reward`, `margin`, `consistency`, `coverage`, the learner's own."""


@torch.no_grad()
def refine(
    agent: Agent,
    fused_B1HW: Tensor,
    weak_B1HW: Tensor,
    config: RpleConfig,
    band_px: int,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Refinement:
    """Label a mini-batch and let the agent learn from it.

    Args:
        agent: Changed in place: its buffer grows by B transitions (of all ranks) and it makes one update.
        fused_B1HW: P̃†.
        weak_B1HW: Pw.
        config: Reward weights.
        band_px: Ignored band at boundaries, see `policy.band_px`.
        gather: Concatenates a [B, ...] tensor over all ranks in rank order; None for one process. It keeps the agents
            of all ranks identical.

    Returns:
        Labels and what led to them.
    """
    previous_BA = agent.thresholds_A.to(fused_B1HW.device).expand(len(fused_B1HW), -1)
    state_BS = state(fused_B1HW, weak_B1HW, previous_BA, band_px)
    action_BA = agent.act(state_BS)
    before_BHW = pseudo_label(fused_B1HW, previous_BA[:, 0], previous_BA[:, 1], band_px)
    label_BHW = pseudo_label(fused_B1HW, action_BA[:, 0], action_BA[:, 1], band_px)
    before_B3 = quality(weak_B1HW, fused_B1HW, before_BHW, config.reward.beta)
    after_B3 = quality(weak_B1HW, fused_B1HW, label_BHW, config.reward.beta)
    reward_B = reward(before_B3, after_B3, previous_BA, action_BA, config.reward)
    next_BS = state(fused_B1HW, weak_B1HW, action_BA, band_px)
    transition = torch.cat((state_BS, action_BA, reward_B.unsqueeze(1), next_BS), dim=1)
    if gather is not None:
        transition = gather(transition)
    states, actions, rewards, nexts = transition.split(
        (state_BS.shape[1], action_BA.shape[1], 1, next_BS.shape[1]), dim=1
    )
    agent.observe(states, actions, rewards[:, 0], nexts)
    learnt = agent.update()
    means = torch.cat((action_BA, reward_B.unsqueeze(1), after_B3), dim=1).mean(dim=0).tolist()
    names = ("tau_fg", "tau_bg", "reward", "margin", "consistency", "coverage")
    return Refinement(
        label_BHW=label_BHW,
        thresholds_BA=action_BA,
        reward_B=reward_B,
        metrics={**dict(zip(names, means, strict=True)), **learnt},
    )
