"""Muon for hidden matrices and AdamW for the rest, as one optimizer. Used by both pretraining recipes on CPUs.

Muon (Jordan et al., 2024): Nesterov momentum, then the update matrix is replaced by the nearest semi-orthogonal one
through five Newton-Schulz steps. Everything runs in float32 (bfloat16 is slow on CPUs without AMX). Parameters of more
than two axes (convolutions) are flattened to `[out, rest]`.

Legend: M rows, N columns of a flattened parameter.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Quintic coefficients of the original: slope at zero is largest, singular values end within about [0.7, 1.2]."""


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Settings of `Muon`."""

    lr: float = 4e-3
    """Learning rate of the matrices."""
    momentum: float = 0.95
    """Momentum of the matrices, Nesterov form."""
    weight_decay: float = 0.0
    """Decoupled weight decay of every parameter of two or more axes."""
    num_steps: int = 5
    """Newton-Schulz steps."""
    update_rms: float | None = None
    """Root mean square of a matrix's update over its learning rate; 0.2 matches AdamW's. None: spectral norm 1."""
    adam_lr: float = 2e-3
    """Learning rate of the remaining parameters."""
    adam_betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates."""
    adam_eps: float = 1e-8
    """AdamW's epsilon."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if (
            min(self.lr, self.adam_lr, self.weight_decay) < 0
            or not 0 <= self.momentum < 1
            or self.num_steps < 1
            or not all(0 <= beta < 1 for beta in self.adam_betas)
            or self.adam_eps <= 0
            or (self.update_rms is not None and self.update_rms <= 0)
        ):
            raise ValueError(f"unusable Muon settings: {self}")


def orthogonalise(update_MN: torch.Tensor, num_steps: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrix, approximately: singular values are driven towards 1.

    Args:
        update_MN: float [M, N], any scale.
        num_steps: Newton-Schulz steps, `X <- a X + (b A + c A A) X` with `A = X X'`.

    Returns:
        float32 [M, N]; singular values within about [0.7, 1.2] unless they were zero.
    """
    a, b, c = NEWTON_SCHULZ
    x_MN = update_MN.float()
    tall = x_MN.shape[0] > x_MN.shape[1]
    if tall:
        x_MN = x_MN.T
    x_MN = x_MN / (x_MN.norm() + 1e-7)
    for _ in range(num_steps):
        gram_MM = x_MN @ x_MN.T
        polynomial_MM = torch.addmm(gram_MM, gram_MM, gram_MM, beta=b, alpha=c)
        x_MN = torch.addmm(x_MN, polynomial_MM, x_MN, beta=a)
    return x_MN.T if tall else x_MN


class Muon(torch.optim.Optimizer):
    """Muon for one list of parameters, AdamW for another.

    A group's `lr` is read at every step, so a schedule multiplies `group["lr"]` (kept: `group["initial_lr"]`).
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        config: MuonConfig | None = None,
    ) -> None:
        """Args: parameters of two or more axes, the rest, and the settings."""
        config = config or MuonConfig()
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "lr": config.lr, "initial_lr": config.lr, "muon": True},
            {"params": list(others), "lr": config.adam_lr, "initial_lr": config.adam_lr, "muon": False},
        ]
        for parameter in groups[0]["params"]:
            if parameter.ndim < 2:
                raise ValueError(f"Muon needs parameters of two or more axes, got {tuple(parameter.shape)}")
        self.config = config
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, group["lr"])

    def _muon(self, parameter: nn.Parameter, grad: torch.Tensor, lr: float) -> None:
        config, state = self.config, self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(grad)
        momentum = state["momentum"].lerp_(grad, 1 - config.momentum)
        update_MN = orthogonalise(grad.lerp(momentum, config.momentum).flatten(1), config.num_steps)
        rows, columns = update_MN.shape
        if config.update_rms is None:
            scale = max(1.0, rows / columns) ** 0.5
        else:
            scale = config.update_rms * max(rows, columns) ** 0.5
        parameter.mul_(1 - lr * config.weight_decay)
        parameter.add_(update_MN.view_as(parameter), alpha=-lr * scale)

    def _adamw(self, parameter: nn.Parameter, grad: torch.Tensor, lr: float) -> None:
        config, state = self.config, self.state[parameter]
        beta1, beta2 = config.adam_betas
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(grad), torch.zeros_like(grad)
        state["step"] += 1
        num = state["step"].item()
        state["mean"].lerp_(grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = (state["square"] / (1 - beta2**num)).sqrt_().add_(config.adam_eps)
        if parameter.ndim >= 2:
            parameter.mul_(1 - lr * config.weight_decay)
        parameter.addcdiv_(state["mean"], scale, value=-lr / (1 - beta1**num))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its initial one."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def split_parameters(
    module: nn.Module, adam_names: tuple[str, ...] = ("embed",)
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Sort a module's trainable parameters into (matrices for Muon, the rest for AdamW).

    Args:
        module: The module; a tied parameter is counted once.
        adam_names: A parameter whose name holds one of these goes to AdamW whatever its shape.

    Returns:
        Two lists that together hold every trainable parameter exactly once.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            by_name = any(part in name for part in adam_names)
            (others if by_name or parameter.ndim < 2 else matrices).append(parameter)
    return matrices, others
