"""An exponential moving average of the weights; off in the paper, an option here and the teacher of other methods.

Left out: bias correction by a running count other than the warm-up below. The average starts as a copy of the
student and the student is never restored from it.
"""

import copy
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from shared.errors import DataError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Moving average of the weights."""

    decay: float = 0.0
    """Decay per step; 0 keeps no average (the paper)."""
    warmup: bool = True
    """Whether step n after the burn-in keeps `min(decay, (1+n)/(10+n))`, for runs too short for a slow average; off,
    `decay` from the first step on."""
    teacher: bool = False
    """Whether the weak view is predicted by the average instead of the network itself."""
    export: bool = True
    """Whether the average, where there is one, is what is evaluated and written to `model/`."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.0 <= self.decay < 1.0:
            raise DataError(f"ema.decay is {self.decay}, not in [0,1)")
        if self.teacher and not self.decay:
            raise DataError("ema.teacher needs ema.decay above 0")


class Ema(Generic[ModuleT]):
    """Averaged copy of a module.

    Attributes:
        module: The averaged module, in evaluation mode, without gradients.
        num_updates: Updates so far, those of the burn-in included.
    """

    def __init__(self, model: ModuleT, decay: float, burn_in: int = 0, *, warmup: bool = True) -> None:
        """Start as a copy of `model` and stay one for the first `burn_in` updates; `decay` is in [0,1).

        Args:
            model: The student.
            decay: Share of the average that an update keeps.
            burn_in: Updates that keep nothing.
            warmup: Let the first updates after those keep less than `decay`, see `update`.
        """
        assert 0.0 <= decay < 1.0 and burn_in >= 0, (decay, burn_in)
        self.decay, self.burn_in, self.warmup, self.num_updates = decay, burn_in, warmup, 0
        self.module: ModuleT = copy.deepcopy(model)
        self.module.eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """`ema = d ema + (1-d) model` with d = `decay`; warmed up `min(decay, (1+n)/(10+n))`, n since the burn-in.

        Running statistics are averaged as the weights are, whose features they describe; whole numbers are copied.
        """
        decay = self._next_decay()
        for own, new in zip(_tensors(self.module), _tensors(model), strict=True):
            if own.is_floating_point():
                own.lerp_(new.detach(), 1.0 - decay)
            else:
                own.copy_(new)
        self.num_updates += 1

    def _next_decay(self) -> float:
        averaged = self.num_updates - self.burn_in
        if averaged < 0:
            return 0.0
        return min(self.decay, (1 + averaged) / (10 + averaged)) if self.warmup else self.decay


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
