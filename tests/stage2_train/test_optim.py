import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch import nn

from shared.config import apply_overrides
from shared.muon import Muon, MuonConfig, set_learning_rate
from stage2_train.optim import (
    OptimConfig,
    average_gradients,
    broadcast_buffers,
    broadcast_state,
    build_optimizer,
    lr_factor,
)
from stage2_train.recipes import embedded


@pytest.mark.parametrize(
    ("step", "config", "factor"),
    [
        (0, OptimConfig(), 1.0),
        (50, OptimConfig(), 0.5**0.9),
        (99, OptimConfig(), 0.01**0.9),
        (100, OptimConfig(), 0.0),
        (70, OptimConfig(power=0.0), 1.0),
        (0, OptimConfig(warmup_steps=4, power=0.0), 0.25),
        (3, OptimConfig(warmup_steps=4, power=0.0), 1.0),
        (1, OptimConfig(warmup_steps=4, power=1.0), 0.5 * 0.99),
    ],
)
def test_polynomial_decay_with_warmup(step: int, config: OptimConfig, factor: float) -> None:
    assert lr_factor(step, 100, config) == pytest.approx(factor)


class _Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision, self.decoder = nn.Linear(2, 3), nn.Linear(3, 2)


def test_adamw_groups_hold_every_parameter_once() -> None:
    model = _Towers()
    model.decoder.bias.requires_grad_(False)
    config = OptimConfig(lr=0.1, weight_decay=0.3, pretrained_lr_scale=0.5, decay_vectors=False)
    optimizer = build_optimizer(model, config, {"vision"})
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates == {
        id(model.vision.weight): (0.05, 0.3),
        id(model.vision.bias): (0.05, 0.0),
        id(model.decoder.weight): (0.1, 0.3),
    }
    set_learning_rate(optimizer, 0.5)
    assert sorted(g["lr"] for g in optimizer.param_groups) == [0.025, 0.025, 0.05]


def test_muon_takes_the_schedule() -> None:
    optimizer = build_optimizer(
        _Towers(), OptimConfig(name="muon", muon=MuonConfig(lr=0.1, adam_lr=0.01)), ()
    )
    assert isinstance(optimizer, Muon)
    set_learning_rate(optimizer, 0.1)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.01, 0.001])


def test_one_process_keeps_its_gradients() -> None:
    model = _Towers()
    model.vision.weight.grad = torch.ones(3, 2)
    average_gradients(model)
    assert torch.equal(model.vision.weight.grad, torch.ones(3, 2)) and model.decoder.weight.grad is None


class _Other:
    """Another process, whose gradients are given: what `torch.distributed` does with one."""

    def __init__(self, gradients: dict[int, torch.Tensor], model: nn.Module) -> None:
        self.gradients = [gradients.get(number) for number, _ in enumerate(model.parameters())]
        self.used: list[bool] = []
        self.reductions = 0

    def all_reduce(self, own: torch.Tensor, op: dist.ReduceOp = dist.ReduceOp.SUM) -> None:
        if not self.used:
            other = torch.tensor([one is not None for one in self.gradients], dtype=own.dtype)
            own.copy_({dist.ReduceOp.MAX: torch.maximum, dist.ReduceOp.MIN: torch.minimum}[op](own, other))
            self.used = own.bool().tolist()
            self.left = torch.cat(
                [
                    torch.zeros(size) if gradient is None else gradient.reshape(-1)
                    for gradient, size, used in zip(self.gradients, (6, 3, 6, 2), self.used, strict=True)
                    if used
                ]
            )
            return
        assert op == dist.ReduceOp.SUM
        mine, self.left = self.left.split([own.numel(), self.left.numel() - own.numel()])
        own += mine
        self.reductions += 1


@pytest.mark.parametrize(("bucket", "reductions"), [(1 << 24, 1), (7, 2), (6, 2), (1, 3)])
def test_gradients_are_averaged_with_those_of_the_other_process(
    monkeypatch: pytest.MonkeyPatch, bucket: int, reductions: int
) -> None:
    """One that a process lacks is zero there, one that both lack stays away; however many are sent at once."""
    model = _Towers()
    model.vision.weight.grad = torch.full((3, 2), 2.0)
    model.vision.bias.grad = torch.full((3,), 8.0)
    other = _Other({0: torch.full((3, 2), 4.0), 2: torch.full((2, 3), 10.0)}, model)
    monkeypatch.setattr("stage2_train.optim._BUCKET_NUMEL", bucket)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", other.all_reduce)
    average_gradients(model)
    assert torch.equal(model.vision.weight.grad, torch.full((3, 2), 3.0))
    assert torch.equal(model.vision.bias.grad, torch.full((3,), 4.0))
    assert model.decoder.weight.grad is not None and model.decoder.bias.grad is None
    assert torch.equal(model.decoder.weight.grad, torch.full((2, 3), 5.0))
    assert other.reductions == reductions


class _First:
    """The first process, whose tensors are sevens throughout: what `torch.distributed` does with it."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, torch.dtype]] = []

    def broadcast(self, own: torch.Tensor, src: int) -> None:
        assert src == 0
        self.sent.append((own.numel(), own.dtype))
        own.fill_(7)


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> _First:
    other = _First()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "broadcast", other.broadcast)
    return other


def test_statistics_are_those_of_the_first_process(first: _First) -> None:
    """In one piece; the count of batches is the same everywhere."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3))
    broadcast_buffers(model)
    assert first.sent == [(10, torch.float32)]
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    assert all(torch.equal(one, torch.full_like(one, 7)) for one in statistics)
    assert all(int(one) == 0 for one in model.buffers() if not one.is_floating_point())


def test_networks_are_those_of_the_first_process(first: _First, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor, by type, however many go together."""
    monkeypatch.setattr("stage2_train.optim._BUCKET_NUMEL", 6)
    models = nn.Linear(2, 3), nn.BatchNorm1d(2)
    broadcast_state(*models)
    floats, whole = (torch.float32, torch.int64)
    assert first.sent == [(6, floats), (3, floats), (6, floats), (2, floats), (1, whole)]
    for model in models:
        for tensor in model.state_dict().values():
            assert torch.equal(tensor, torch.full_like(tensor, 7))


def test_muon_trains_pretrained_parts_at_a_lower_rate() -> None:
    model = _Towers()
    config = OptimConfig(name="muon", muon=MuonConfig(lr=0.1, adam_lr=0.01), pretrained_lr_scale=0.5)
    optimizer = build_optimizer(model, config, {"vision"})
    rates = {id(p): (g["lr"], g["muon"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates == {
        id(model.vision.weight): (0.05, True),
        id(model.vision.bias): (0.005, False),
        id(model.decoder.weight): (0.1, True),
        id(model.decoder.bias): (0.01, False),
    }
    set_learning_rate(optimizer, 0.5)
    assert sorted(g["lr"] for g in optimizer.param_groups) == [0.0025, 0.005, 0.025, 0.05]


@pytest.mark.parametrize(
    "config", [OptimConfig(lr=0.1), OptimConfig(name="muon", muon=MuonConfig(lr=0.1, adam_lr=0.1))]
)
def test_a_part_that_starts_at_random_has_the_whole_rate(config: OptimConfig) -> None:
    config = dataclasses.replace(
        config, pretrained_lr_scale=0.5, pretrained_prefixes=("vision.", "decoder.weight")
    )
    model = _Towers()

    def rates(*loaded: str) -> dict[str, float]:
        groups = build_optimizer(model, config, loaded).param_groups
        by_id = {id(p): group["lr"] for group in groups for p in group["params"]}
        return {name: by_id[id(p)] for name, p in model.named_parameters()}

    whole = {"vision.weight": 0.1, "vision.bias": 0.1, "decoder.weight": 0.1, "decoder.bias": 0.1}
    assert rates() == whole
    assert rates("vision") == whole | {"vision.weight": 0.05, "vision.bias": 0.05}
    assert rates("decoder") == whole | {"decoder.weight": 0.05}


def test_a_second_network_has_the_rates_of_the_first() -> None:
    model = _Towers()
    model.branch = _Towers()
    config = OptimConfig(lr=0.1, pretrained_lr_scale=0.5)
    groups = build_optimizer(model, config, {"vision"}).param_groups
    by_id = {id(p): group["lr"] for group in groups for p in group["params"]}
    rates = {name: by_id[id(p)] for name, p in model.named_parameters()}
    assert rates["branch.vision.weight"] == rates["vision.weight"] == 0.05
    assert rates["branch.decoder.weight"] == rates["decoder.weight"] == 0.1


@pytest.mark.parametrize(
    ("changes", "loaded"),
    [
        ([], {"vision", "text", "fusion"}),
        (["segmentor.weight_parts=text"], {"text"}),
        (["segmentor.weights=none"], set()),
        (["segmentor.weights=none", "segmentor.vision.weights=folder"], {"vision"}),
    ],
)
def test_which_parts_are_read_from_weights(changes: list[str], loaded: set[str]) -> None:
    assert apply_overrides(embedded(), changes).segmentor.loaded_parts == loaded
