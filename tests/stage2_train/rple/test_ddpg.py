"""The learner: its target by hand, a toy problem with a known optimum, and bit-exact resumption."""

from pathlib import Path

import pytest
import torch

from shared.errors import DataError
from stage2_train.rple.ddpg import Agent, DdpgConfig, ReplayBuffer
from stage2_train.rple.policy import PolicyConfig, project_action

BEST = torch.tensor([0.55, 0.35])


def transitions(agent: Agent, generator: torch.Generator, num: int = 8) -> None:
    """One bandit step: the reward depends on the action alone, which is the policy's with noise."""
    state_BS, next_BS = torch.rand(num, 6, generator=generator), torch.rand(num, 6, generator=generator)
    noise_BA = agent.config.noise_std * torch.randn(num, 2, generator=generator)
    action_BA = project_action(agent.act(state_BS) + noise_BA, agent.policy)
    agent.observe(state_BS, action_BA, -10.0 * (action_BA - BEST).square().sum(dim=1), next_BS)


def test_policy_finds_the_best_thresholds_of_a_toy_problem() -> None:
    config = DdpgConfig(actor_lr=1e-3, critic_lr=1e-2, noise_std=0.1, gamma=0.0, capacity=2000)
    agent, generator = Agent(config, PolicyConfig(), 0, "toy"), torch.Generator().manual_seed(0)
    state_BS = torch.rand(32, 6, generator=generator)
    start = agent.act(state_BS)
    for _ in range(600):
        transitions(agent, generator)
        agent.update()
    end = agent.act(state_BS)
    assert (start - BEST).abs().max() > 0.1
    assert (end - BEST).abs().mean() < 0.05


def test_target_is_reward_plus_discounted_value() -> None:
    config = DdpgConfig(gamma=0.9, noise_std=0.0, batch=1, capacity=1)
    agent = Agent(config, PolicyConfig(), 0)
    with torch.no_grad():
        for parameter in agent.target.parameters():
            parameter.zero_()
        agent.target.net[-1].bias.fill_(2.0)
    state_BS = torch.full((1, 6), 0.5)
    action_BA = torch.tensor([[0.7, 0.2]])
    agent.observe(state_BS, action_BA, torch.tensor([0.25]), state_BS)
    value = agent.critic(state_BS, action_BA).item()
    assert agent.update()["critic_loss"] == pytest.approx((value - (0.25 + 0.9 * 2.0)) ** 2, rel=1e-4)


def test_target_looks_at_the_state_that_came_next(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(DdpgConfig(gamma=0.5, batch=1, capacity=1), PolicyConfig(), 0)
    monkeypatch.setattr(agent.target, "forward", lambda state_BS, action_BA: state_BS[:, 0])
    state_BS, next_BS, action_BA = (
        torch.full((1, 6), 0.2),
        torch.full((1, 6), 0.8),
        torch.tensor([[0.7, 0.2]]),
    )
    agent.observe(state_BS, action_BA, torch.tensor([0.25]), next_BS)
    value = agent.critic(state_BS, action_BA).item()
    assert agent.update()["critic_loss"] == pytest.approx((value - (0.25 + 0.5 * 0.8)) ** 2, rel=1e-4)


def test_thresholds_in_force_are_the_mean_action() -> None:
    agent = Agent(DdpgConfig(), PolicyConfig(), 0)
    assert agent.thresholds_A.tolist() == pytest.approx([0.7, 0.2])
    agent.observe(
        torch.zeros(2, 6), torch.tensor([[0.6, 0.1], [0.8, 0.4]]), torch.zeros(2), torch.zeros(2, 6)
    )
    assert agent.thresholds_A.tolist() == pytest.approx([0.7, 0.25])


def test_target_follows_softly() -> None:
    agent = Agent(DdpgConfig(target_rate=0.005), PolicyConfig(), 0)
    for old, critic in zip(agent.target.parameters(), agent.critic.parameters(), strict=True):
        assert torch.equal(old, critic)
    transitions(agent, torch.Generator().manual_seed(0))
    before = [p.clone() for p in agent.target.parameters()]
    agent.update()
    for old, now, critic in zip(before, agent.target.parameters(), agent.critic.parameters(), strict=True):
        assert torch.allclose(now, 0.995 * old + 0.005 * critic, atol=1e-6)


def test_update_without_experience_does_nothing() -> None:
    assert Agent(DdpgConfig(), PolicyConfig(), 0).update() == {}


def test_buffer_keeps_the_last_transitions() -> None:
    buffer = ReplayBuffer(5)
    for value in range(4):
        ones = torch.full((2, 6), float(value))
        buffer.add(ones, ones[:, :2], ones[:, 0], ones)
    assert len(buffer) == 5 and buffer.num_seen == 8
    assert sorted(buffer.rows[:, 0].tolist()) == [1.0, 2.0, 2.0, 3.0, 3.0]


def test_only_what_was_seen_is_replayed() -> None:
    buffer = ReplayBuffer(100)
    for value in (1.0, 2.0):
        ones = torch.full((1, 6), value)
        buffer.add(ones, ones[:, :2] + 10, ones[:, 0] + 20, ones + 30)
    drawn = buffer.sample(40, torch.Generator().manual_seed(0))
    columns = torch.cat([one.reshape(40, -1)[:, :1] for one in drawn], dim=1)
    assert {tuple(row) for row in columns.tolist()} == {(1.0, 11.0, 21.0, 31.0), (2.0, 12.0, 22.0, 32.0)}


def test_resumed_agent_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    config = DdpgConfig(capacity=64, batch=16)
    agent, world = Agent(config, PolicyConfig(), 3), torch.Generator().manual_seed(0)
    for _ in range(12):
        transitions(agent, world)
        agent.update()
    path = tmp_path / "agent.pt"
    torch.save(agent.state_dict(), path)
    world_state = world.get_state()
    resumed = Agent(config, PolicyConfig(), 99)
    resumed.load_state_dict(torch.load(path, weights_only=True))
    assert torch.equal(resumed.thresholds_A, agent.thresholds_A)
    ends = []
    for one in (agent, resumed):
        world.set_state(world_state)
        for _ in range(5):
            transitions(one, world)
            one.update()
        ends.append([*one.actor.state_dict().values(), *one.target.state_dict().values(), one.thresholds_A])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_an_agent_is_a_function_of_its_key_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (
        Agent(DdpgConfig(), PolicyConfig(), 0, "a"),
        Agent(DdpgConfig(), PolicyConfig(), 0, "a"),
        Agent(DdpgConfig(), PolicyConfig(), 0, "b"),
    )
    assert torch.equal(torch.rand(3), expected)
    state_BS = torch.rand(2, 6)
    assert torch.equal(first.act(state_BS), second.act(state_BS))
    assert not torch.equal(first.act(state_BS), third.act(state_BS))


def test_a_value_that_starts_near_zero_prefers_no_threshold_and_changes_no_other_draw() -> None:
    plain, small = (Agent(DdpgConfig(critic_start=start), PolicyConfig(), 3) for start in (1.0, 0.01))
    states, actions = torch.rand(50, 6), torch.rand(50, 2)
    values = plain.critic(states, actions)
    assert values.abs().max() > 0.03
    torch.testing.assert_close(small.critic(states, actions), 0.01 * values)
    torch.testing.assert_close(small.target(states, actions), 0.01 * values)
    torch.testing.assert_close(small.actor.state_dict(), plain.actor.state_dict(), rtol=0, atol=0)


def test_a_buffer_that_does_not_fit_is_refused() -> None:
    agent = Agent(DdpgConfig(capacity=64, batch=8), PolicyConfig(), 0)
    transitions(agent, torch.Generator().manual_seed(0), num=40)
    with pytest.raises(DataError, match="does not fit ddpg.capacity 32"):
        Agent(DdpgConfig(capacity=32, batch=8), PolicyConfig(), 0).load_state_dict(agent.state_dict())


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["actor_lr", "critic_lr", "critic_start", "noise_std"])
def test_rates_and_noise_are_numbers_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(DataError, match=f"ddpg.{name} is {value}"):
        DdpgConfig(**{name: value})  # type: ignore[arg-type]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(DataError, match="gamma"):
        DdpgConfig(gamma=1.0)
    with pytest.raises(DataError, match="capacity"):
        DdpgConfig(capacity=8, batch=64)
