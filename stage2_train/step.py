"""One optimiser step: micro-batches, averaged gradients, clipping, update, policy update.

Global quantities (loss, shares, the stop flag) travel in one small reduction per step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.muon import set_learning_rate
from shared.seeding import seed_of
from stage2_train.batch import Batch
from stage2_train.config import TrainConfig
from stage2_train.constants import constant
from stage2_train.ema import Ema
from stage2_train.methods.base import Method, StepOutput
from stage2_train.networks import Networks
from stage2_train.optim import average_gradients, broadcast_buffers, lr_factor
from stage2_train.pseudo_labels import Pseudo

_SHARES = ("coverage", "foreground")


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimiser step did, on this process unless said otherwise."""

    loss: float
    """Mean loss over all processes and micro-batches."""
    shares: dict[str, float]
    """`coverage` and `foreground` over all processes; empty without pseudo-labels."""
    stop: bool
    """Whether any process was asked to stop."""
    metrics: dict[str, Tensor]
    """Means over this process's micro-batches."""
    global_metrics: dict[str, float]
    """Figures that are equal on all processes already."""
    pseudo: tuple[Pseudo, ...]
    """What was taught, one per micro-batch; empty where unlabelled samples weigh nothing."""


def train_step(
    accelerator: Accelerator,
    networks: Networks,
    method: Method,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    config: TrainConfig,
    *,
    ema: Ema | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> StepResult:
    """Run one step on this process's micro-batches, in order."""
    step = batches[0].step
    assert len(batches) == config.accumulation and all(batch.step == step for batch in batches)
    factor = lr_factor(step, config.steps, config.optim)
    set_learning_rate(optimizer, factor)
    networks.student.train()
    teaches = method.unlabelled_weight(step) > 0
    losses: list[Tensor] = []
    collected: list[dict[str, Tensor]] = []
    pseudo: list[Pseudo] = []
    for batch in batches:
        # Dropout and stochastic depth draw from torch's global state: set it so that a resumed run draws the same.
        torch.manual_seed(seed_of(config.seed, "dropout", step, batch.micro, accelerator.process_index))
        # Not Accelerate's autocast: its type is fixed for the life of a process. bfloat16 needs no loss scaling.
        # No cache of its casts: before torch 2.10 a pass without gradient left casts without one to the pass after it.
        half = config.precision == "bf16"
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            output = _loss(networks, method, batch.to(accelerator.device), teaches)
        # Not Accelerate's backward: variables of its launcher would scale the loss, which nothing here takes back.
        (output.loss / config.accumulation).backward()
        losses.append(output.loss.detach())
        collected.append(output.metrics)
        if output.pseudo is not None:
            pseudo.append(output.pseudo)
    average_gradients(networks.student)
    broadcast_buffers(networks.student)
    # Without clipping the norm is wanted all the same: by one that is not finite the alarm ends a run before it saves.
    norm = accelerator.clip_grad_norm_(networks.student.parameters(), config.optim.grad_clip or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if ema is not None:
        ema.update(networks.student)
    # Read after the update is under way: it waits for the device.
    global_metrics = {"lr_factor": factor, "grad_norm": float(norm)} | method.finish_step(accelerator.gather)
    metrics = {name: torch.stack([m[name].float() for m in collected]).mean() for name in collected[0]}
    loss, shares, stop = _reduce(accelerator, torch.stack(losses).mean(), metrics, stop_requested())
    return StepResult(
        loss=loss,
        shares=shares,
        stop=stop,
        metrics=metrics,
        global_metrics=global_metrics,
        pseudo=tuple(pseudo),
    )


def _loss(networks: Networks, method: Method, batch: Batch, teaches: bool) -> StepOutput:
    """Of the labelled part alone unless the step `teaches`: strong views would enter running statistics, too."""
    return method.loss(networks, batch) if teaches else method.labelled_only(networks, batch.labelled)


def _reduce(
    accelerator: Accelerator, loss: Tensor, metrics: dict[str, Tensor], stop: bool
) -> tuple[float, dict[str, float], bool]:
    """Loss, shares and stop flag over all processes: one reduction, one synchronisation."""
    names = [name for name in _SHARES if name in metrics]
    parts = [loss.float(), *(metrics[name].float() for name in names), constant(float(stop), loss)]
    values = torch.stack([part.to(accelerator.device) for part in parts])
    values = accelerator.reduce(values, reduction="mean").tolist()
    return values[0], dict(zip(names, values[1:-1], strict=True)), values[-1] > 0
