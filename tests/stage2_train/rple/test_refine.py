"""One labelling step end to end."""

import torch

from stage2_train.rple.ddpg import Agent, DdpgConfig
from stage2_train.rple.policy import pseudo_label
from stage2_train.rple.refine import RpleConfig, refine


def maps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 1, 8, 8, generator=generator), torch.rand(3, 1, 8, 8, generator=generator)


def test_labels_follow_the_returned_thresholds() -> None:
    agent, (fused_B1HW, weak_B1HW) = Agent(DdpgConfig(), 0), maps()
    result = refine(agent, fused_B1HW, weak_B1HW, RpleConfig(), band_px=0)
    expected = pseudo_label(fused_B1HW, result.thresholds_BA[:, 0], result.thresholds_BA[:, 1], 0)
    assert torch.equal(result.label_BHW, expected)
    assert len(agent.buffer) == 3
    assert torch.allclose(agent.thresholds_A, result.thresholds_BA.mean(dim=0))
    assert {"tau_fg", "tau_bg", "reward", "margin", "consistency", "coverage", "critic_loss"} <= set(
        result.metrics
    )


def test_without_noise_the_first_reward_is_almost_nothing() -> None:
    """The policy starts at the thresholds in force, so hardly anything is gained or lost."""
    agent, (fused_B1HW, weak_B1HW) = Agent(DdpgConfig(noise_std=0.0), 0), maps()
    assert refine(agent, fused_B1HW, weak_B1HW, RpleConfig(), band_px=0).reward_B.abs().max() < 0.05


def test_gathered_ranks_stay_identical() -> None:
    fused_B1HW, weak_B1HW = maps()
    agents = [Agent(DdpgConfig(), 0, noise_key=rank) for rank in range(2)]
    collected: list[torch.Tensor] = []
    for agent in agents:
        refine(
            Agent(DdpgConfig(), 0, noise_key=agents.index(agent)),
            fused_B1HW,
            weak_B1HW,
            RpleConfig(),
            0,
            gather=lambda rows: (collected.append(rows), rows)[1],
        )
    for agent in agents:
        refine(agent, fused_B1HW, weak_B1HW, RpleConfig(), 0, gather=lambda _: torch.cat(collected))
    first, second = (agent.actor.state_dict() for agent in agents)
    assert len(agents[0].buffer) == 6
    assert all(torch.equal(first[name], second[name]) for name in first)
