"""Deep deterministic policy gradient with a replay buffer (eq. 13-14).

Axes: B transitions, S state entries, A action entries.

    Eq. 13  y = R + gamma Q'(s', pi(s')),  critic loss (Q(s, a) - y)^2
    Eq. 14  actor gradient of mean Q(s, pi(s)),  Q' <- (1 - rate) Q' + rate Q

The agent owns the random generator of its replay and its buffer, and `state_dict` carries all of it as tensors and
plain numbers, so a resumed agent is the uninterrupted one bit for bit. Exploration is the caller's: noise comes with
the samples (`methods/l2l.py`). The target of eq. 13 uses the online policy, as written, so there is no target policy.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.errors import DataError
from shared.seeding import Key, seed_of, torch_generator
from stage2_train.rple.policy import ACTION_DIM, STATE_DIM, Actor, Critic, PolicyConfig


@dataclass(frozen=True, kw_only=True)
class DdpgConfig:
    """Settings of the learner."""

    gamma: float = 0.9
    """Discount."""
    actor_lr: float = 1e-4
    """Adam's rate of the policy."""
    critic_lr: float = 1e-4
    """Adam's rate of the value."""
    critic_start: float = 1.0
    """Factor on the value's last layer as it is drawn (the paper is silent: 1, torch's draw). In some hundred steps the
    thresholds go where that draw leads; near 0, as DDPG's authors begin, they go where rewards do."""
    target_rate: float = 0.005
    """Soft update of the target critic."""
    noise_std: float = 0.01
    """Exploration noise, standard deviation of each threshold."""
    capacity: int = 10_000
    """Transitions kept."""
    batch: int = 64
    """Transitions per update; fewer are used while the buffer holds fewer."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.gamma < 1 or not 0 < self.target_rate <= 1:
            raise DataError(
                f"ddpg: gamma {self.gamma} must be in [0, 1), target_rate {self.target_rate} in (0, 1]"
            )
        for name in ("actor_lr", "critic_lr", "critic_start", "noise_std"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DataError(f"ddpg.{name} is {getattr(self, name)}; it must be finite and not negative")
        if self.capacity < self.batch or self.batch < 1:
            raise DataError(f"ddpg: capacity {self.capacity} must hold a batch of {self.batch}, at least 1")


class ReplayBuffer:
    """The last `capacity` transitions, oldest overwritten first; on the CPU."""

    def __init__(self, capacity: int) -> None:
        """Allocate."""
        self.rows = torch.zeros(capacity, 2 * STATE_DIM + ACTION_DIM + 1)
        self.num_seen = 0

    def __len__(self) -> int:
        """Transitions held."""
        return min(self.num_seen, len(self.rows))

    def add(self, state_BS: Tensor, action_BA: Tensor, reward_B: Tensor, next_BS: Tensor) -> None:
        """Append B transitions."""
        rows = torch.cat((state_BS, action_BA, reward_B.unsqueeze(1), next_BS), dim=1).detach().float().cpu()
        slots = (self.num_seen + torch.arange(len(rows))) % len(self.rows)
        self.rows[slots] = rows
        self.num_seen += len(rows)

    def sample(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw `num` transitions with replacement: (s, a, R, s')."""
        rows = self.rows[torch.randint(len(self), (num,), generator=generator)]
        state_BS, action_BA, reward_B1, next_BS = rows.split((STATE_DIM, ACTION_DIM, 1, STATE_DIM), dim=1)
        return state_BS, action_BA, reward_B1[:, 0], next_BS


class Agent:
    """Policy, value, buffer, optimizers and random generator, on the CPU: the networks are tiny.

    Ranks that feed every agent the same transitions in the same order keep identical agents, as long as their
    processors round alike: on nodes of several kinds, thresholds may come to differ in their last digits.
    """

    def __init__(self, config: DdpgConfig, policy: PolicyConfig, *key: Key) -> None:
        """Build an agent whose every draw is a function of `key`."""
        self.config, self.policy = config, policy
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(*key, "rple networks"))
            self.actor, self.critic, self.target = Actor(policy), Critic(config.critic_start), Critic()
        self.target.load_state_dict(self.critic.state_dict())
        self.target.requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.critic_lr)
        self.buffer = ReplayBuffer(config.capacity)
        self.sample_generator = torch_generator(*key, "rple replay")
        self.thresholds_A = torch.tensor((policy.start_fg, policy.start_bg))
        """The thresholds in force: the mean action of the last mini-batch."""

    @torch.no_grad()
    def act(self, state_BS: Tensor) -> Tensor:
        """The policy's thresholds [B, 2], ordered, on the state's device; without exploration noise."""
        return self.actor(state_BS.detach().float().cpu()).to(state_BS.device, non_blocking=True)

    def observe(self, state_BS: Tensor, action_BA: Tensor, reward_B: Tensor, next_BS: Tensor) -> None:
        """Store transitions and put their mean action in force."""
        self.buffer.add(state_BS, action_BA, reward_B, next_BS)
        self.thresholds_A = action_BA.detach().float().cpu().mean(dim=0)

    def update(self) -> dict[str, float]:
        """One critic and one actor step on replayed transitions.

        Returns:
            `critic_loss` and `q`; empty while the buffer is empty.
        """
        if not len(self.buffer):
            return {}
        config = self.config
        num = min(config.batch, len(self.buffer))
        state_BS, action_BA, reward_B, next_BS = self.buffer.sample(num, self.sample_generator)
        with torch.enable_grad():
            with torch.no_grad():
                target_B = reward_B + config.gamma * self.target(next_BS, self.actor(next_BS))
            critic_loss = torch.nn.functional.mse_loss(self.critic(state_BS, action_BA), target_B)
            self.critic_optimizer.zero_grad(set_to_none=True)
            critic_loss.backward()
            self.critic_optimizer.step()
            value = self.critic(state_BS, self.actor(state_BS)).mean()
            self.actor_optimizer.zero_grad(set_to_none=True)
            gradients = torch.autograd.grad(-value, list(self.actor.parameters()))
            for parameter, gradient in zip(self.actor.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self.actor_optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                old.lerp_(new, config.target_rate)
        return {"critic_loss": float(critic_loss.detach()), "q": float(value.detach())}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later `update` or `act` depends on, as nested dicts of tensors and plain numbers."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "target": self.target.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "replay_rows": self.buffer.rows[: len(self.buffer)].clone(),
            "replay_seen": self.buffer.num_seen,
            "sample_rng": self.sample_generator.get_state(),
            "thresholds": self.thresholds_A.clone(),
        }

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Become the agent that wrote `values`.

        Raises:
            DataError: The saved buffer is larger than this agent's, or not a prefix of one of its size.
        """
        rows, seen = values["replay_rows"], int(values["replay_seen"])
        if len(rows) != min(seen, len(self.buffer.rows)):
            raise DataError(
                f"replay buffer of {len(rows)} rows does not fit ddpg.capacity {len(self.buffer.rows)}"
            )
        for name in ("actor", "critic", "target", "actor_optimizer", "critic_optimizer"):
            getattr(self, name).load_state_dict(values[name])
        self.buffer.rows.zero_()
        self.buffer.rows[: len(rows)] = rows
        self.buffer.num_seen = seen
        self.sample_generator.set_state(values["sample_rng"].cpu())
        self.thresholds_A = values["thresholds"].clone()
