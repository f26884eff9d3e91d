import pytest
import torch
from torch import nn

from shared.muon import Muon, MuonConfig, set_learning_rate
from stage2_train.optim import OptimConfig, average_gradients, build_optimizer, lr_factor


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
    optimizer = build_optimizer(model, config)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates == {
        id(model.vision.weight): (0.05, 0.3),
        id(model.vision.bias): (0.05, 0.0),
        id(model.decoder.weight): (0.1, 0.3),
    }
    set_learning_rate(optimizer, 0.5)
    assert sorted(g["lr"] for g in optimizer.param_groups) == [0.025, 0.025, 0.05]


def test_muon_takes_the_schedule() -> None:
    optimizer = build_optimizer(_Towers(), OptimConfig(name="muon", muon=MuonConfig(lr=0.1, adam_lr=0.01)))
    assert isinstance(optimizer, Muon)
    set_learning_rate(optimizer, 0.1)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.01, 0.001])


def test_one_process_keeps_its_gradients() -> None:
    model = _Towers()
    model.vision.weight.grad = torch.ones(3, 2)
    average_gradients(model)
    assert torch.equal(model.vision.weight.grad, torch.ones(3, 2)) and model.decoder.weight.grad is None


def test_muon_trains_pretrained_parts_at_a_lower_rate() -> None:
    model = _Towers()
    config = OptimConfig(name="muon", muon=MuonConfig(lr=0.1, adam_lr=0.01), pretrained_lr_scale=0.5)
    optimizer = build_optimizer(model, config)
    rates = {id(p): (g["lr"], g["muon"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates == {
        id(model.vision.weight): (0.05, True),
        id(model.vision.bias): (0.005, False),
        id(model.decoder.weight): (0.1, True),
        id(model.decoder.bias): (0.01, False),
    }
    set_learning_rate(optimizer, 0.5)
    assert sorted(g["lr"] for g in optimizer.param_groups) == [0.0025, 0.005, 0.025, 0.05]
