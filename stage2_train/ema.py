"""An exponential moving average of the weights; off in the paper, an option here.

Left out: bias correction by a running count other than the warm-up below. The average starts as a copy of the
student and the student is never restored from it.
"""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Ema(Generic[ModuleT]):
    """Averaged copy of a module.

    Attributes:
        module: The averaged module, in evaluation mode, without gradients.
        num_updates: Updates so far.
    """

    def __init__(self, model: ModuleT, decay: float) -> None:
        """Start as a copy of `model`; `decay` is in [0,1)."""
        assert 0.0 <= decay < 1.0, decay
        self.decay, self.num_updates = decay, 0
        self.module: ModuleT = copy.deepcopy(model)
        self.module.eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """`ema = d ema + (1-d) model` with `d = min(decay, (1+n)/(10+n))`; buffers are copied."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for own, new in zip(self.module.parameters(), model.parameters(), strict=True):
            own.lerp_(new.detach(), 1.0 - decay)
        for own_buffer, new_buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            own_buffer.copy_(new_buffer)
        self.num_updates += 1
