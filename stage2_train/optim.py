"""Optimisers, the learning-rate schedule, and averaging of gradients over processes.

The schedule is a pure function of the step, so it needs no state in a checkpoint.
"""

from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from shared.errors import DataError
from shared.muon import Muon, MuonConfig, split_parameters

_BUCKET_NUMEL = 1 << 24
"""Elements that go together (64 MiB in float32)."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """`adamw`, or `muon` with AdamW for vectors and embeddings; the classifier and the tables of relative positions
    count as matrices (in the pretraining of the shipped network they do not)."""
    lr: float = 5e-5
    """AdamW's learning rate."""
    weight_decay: float = 1e-2
    """AdamW's decoupled weight decay."""
    decay_vectors: bool = True
    """Whether weight decay also acts on biases and norms (the paper is silent: torch's default)."""
    pretrained_lr_scale: float = 1.0
    """Factor on the learning rate of parameters named in `pretrained_prefixes`; those of a part of the network that
    starts at random have the whole rate."""
    pretrained_prefixes: tuple[str, ...] = ("vision.", "text.")
    """Beginnings of the names of pretrained parameters, where their part is read from weights."""
    muon: MuonConfig = field(default_factory=MuonConfig)
    """Settings of `muon`."""
    power: float = 0.9
    """Power of the polynomial decay to zero over the run (0 = constant)."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    grad_clip: float = 0.0
    """Largest gradient norm (0 = no clipping)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if (
            self.lr <= 0
            or self.weight_decay < 0
            or self.power < 0
            or self.warmup_steps < 0
            or self.grad_clip < 0
        ):
            raise DataError(
                "optim: lr must be above 0; weight_decay, power, warmup_steps, grad_clip not below 0"
            )
        if self.pretrained_lr_scale < 0:
            raise DataError(f"optim.pretrained_lr_scale is {self.pretrained_lr_scale}, below 0")


def lr_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """Factor on every initial learning rate at a step.

    Args:
        step: 0-based optimiser step.
        total_steps: Steps of the whole run.
        config: Warm-up and power.

    Returns:
        `min(1, (step+1)/warmup) * (1 - step/total)^power`, in [0,1].
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warm * max(0.0, 1.0 - step / total_steps) ** config.power


def build_optimizer(
    model: nn.Module, config: OptimConfig, loaded_parts: Collection[str]
) -> torch.optim.Optimizer:
    """The configured optimiser over the trainable parameters; every group carries `initial_lr`.

    Args:
        model: The network; a second one, its `branch`, has the rates of the first.
        config: Optimiser and learning rates.
        loaded_parts: Sub-modules of the network that were read from weights (`SegmentorConfig.loaded_parts`).
    """

    def is_pretrained(name: str) -> bool:
        name = name.removeprefix("branch.")
        return name.startswith(config.pretrained_prefixes) and name.partition(".")[0] in loaded_parts

    if config.name == "muon":
        optimizer = Muon(*split_parameters(model), config=config.muon)
        if config.pretrained_lr_scale != 1.0:
            slow = {id(parameter) for name, parameter in model.named_parameters() if is_pretrained(name)}
            _slow(optimizer, slow, config.pretrained_lr_scale)
        return optimizer
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr = config.lr * (config.pretrained_lr_scale if is_pretrained(name) else 1.0)
            decay = config.weight_decay if config.decay_vectors or parameter.ndim > 1 else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": lr, "initial_lr": lr, "weight_decay": decay}
            for (lr, decay), parameters in groups.items()
        ],
        lr=config.lr,
        fused=True,
    )


def _slow(optimizer: Muon, slow: Set[int], scale: float) -> None:
    """Move these parameters (by `id`) of every group to a group of their own with a scaled learning rate."""
    for group in list(optimizer.param_groups):
        parameters = group["params"]
        group["params"] = [parameter for parameter in parameters if id(parameter) not in slow]
        lr = group["initial_lr"] * scale
        moved = [parameter for parameter in parameters if id(parameter) in slow]
        optimizer.add_param_group({**group, "params": moved, "lr": lr, "initial_lr": lr})
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]


def average_gradients(model: nn.Module) -> None:
    """Average gradients over all processes, in place; nothing happens in a single process.

    Done here once per optimiser step instead of wrapping the model in DistributedDataParallel: whether the prior-field
    parameters take part is drawn per sample, so they may have a gradient in one micro-batch or process and none in
    another, which DDP's reducer does not count correctly under accumulation. A parameter without a gradient on one
    process counts as zero there; one without a gradient on all keeps none, as in a single process.
    """
    if _is_alone():
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, is_used in zip(parameters, used.tolist(), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = _joined(bucket)
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        _give_back(flat, bucket)


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the running statistics of the first; nothing happens in a single process.

    Whole numbers among the buffers are the same everywhere: counts of steps, and tables of positions.
    """
    if _is_alone():
        return
    _broadcast([buffer for buffer in model.buffers() if buffer.is_floating_point()])


def broadcast_state(*models: nn.Module) -> None:
    """Give every process the parameters and buffers of the first; nothing happens in a single process.

    Only gradients are averaged later on. Networks that were read from different files, or drawn by processors that
    round in different ways, would stay different.
    """
    if _is_alone():
        return
    for model in models:
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            by_dtype.setdefault(tensor.dtype, []).append(tensor.detach())
        for dtype in sorted(by_dtype, key=str):
            _broadcast(by_dtype[dtype])


def _is_alone() -> bool:
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def _broadcast(tensors: Sequence[torch.Tensor]) -> None:
    """Tensors of one type."""
    for bucket in _buckets(tensors):
        flat = _joined(bucket)
        dist.broadcast(flat, src=0)
        _give_back(flat, bucket)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors in order, in groups that end with the first by which they reach `_BUCKET_NUMEL`."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel()
        if size >= _BUCKET_NUMEL:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _give_back(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Write what `_joined` made of the tensors back into them."""
    for tensor, part in zip(tensors, flat.split([one.numel() for one in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
