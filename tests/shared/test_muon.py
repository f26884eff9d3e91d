"""Muon: the orthogonalised update, AdamW against torch's own, the split of parameters, resuming."""

import pytest
import torch
from torch import nn

from shared.muon import Muon, MuonConfig, orthogonalise, set_learning_rate, split_parameters
from shared.seeding import torch_generator


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_orthogonalise_drives_singular_values_towards_one(shape: tuple[int, int]) -> None:
    update_MN = torch.randn(shape, generator=torch_generator("muon", *shape)) * 1e-4
    result_MN = orthogonalise(update_MN)
    before, after = torch.linalg.svdvals(update_MN), torch.linalg.svdvals(result_MN)
    assert before.max() < 1e-2
    # The original's quintic oscillates around 1; a square Gaussian also has singular values near zero.
    assert after.max() < 1.3 and after.median() > 0.65
    u_MK, _, v_KN = torch.linalg.svd(update_MN, full_matrices=False)
    cosine = (result_MN * (u_MK @ v_KN)).sum() / (result_MN.norm() * (u_MK @ v_KN).norm())
    assert cosine > 0.95


def test_adamw_part_equals_torch() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    config = MuonConfig(adam_lr=0.01, weight_decay=0.1)
    mine = Muon([], [ours], config)
    reference = torch.optim.AdamW(
        [theirs], lr=0.01, betas=config.adam_betas, eps=config.adam_eps, weight_decay=0.1
    )
    for step in range(5):
        for parameter, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            ((parameter - step) ** 3).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # float32 rounding of 5 steps


def test_step_length_does_not_depend_on_gradient_scale() -> None:
    deltas = []
    for scale in (1.0, 1000.0):
        parameter = nn.Parameter(torch.zeros(4, 3, 2))
        parameter.grad = torch.randn(4, 3, 2, generator=torch_generator("muon scale")) * scale
        Muon([parameter], []).step()
        deltas.append(parameter.detach().clone())
    torch.testing.assert_close(deltas[0], deltas[1], rtol=1e-4, atol=1e-6)
    assert deltas[0].abs().max() > 0


def test_fits_a_linear_map_and_obeys_the_lr_scale() -> None:
    x_BN = torch.randn(64, 6, generator=torch_generator("muon fit"))
    target = x_BN @ torch.randn(6, 6, generator=torch_generator("muon target"))
    model = nn.Linear(6, 6)
    optimizer = Muon(*split_parameters(model), MuonConfig(lr=0.05, adam_lr=0.05))
    for step in range(200):
        set_learning_rate(optimizer, 1 - step / 200)
        optimizer.zero_grad()
        loss = ((model(x_BN) - target) ** 2).mean()
        loss.backward()
        optimizer.step()
    assert loss < 1e-2
    frozen = model.weight.detach().clone()
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    assert torch.equal(frozen, model.weight)


def test_split_takes_every_parameter_once() -> None:
    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(5, 4))
    model.add_module("hidden", nn.Linear(4, 4))
    model.add_module("conv", nn.Conv2d(4, 4, 3))
    matrices, others = split_parameters(model)
    assert {id(p) for p in matrices} == {id(model.hidden.weight), id(model.conv.weight)}
    assert len(matrices) + len(others) == len(list(model.parameters()))


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="two or more axes"):
        Muon([nn.Parameter(torch.zeros(3))], [])


def test_resume_continues_bit_for_bit() -> None:
    def run(stop: int) -> torch.Tensor:
        parameter = nn.Parameter(torch.eye(3))
        bias = nn.Parameter(torch.zeros(3))
        optimizer = Muon([parameter], [bias])
        for step in range(6):
            if step == stop:
                saved = optimizer.state_dict()
                optimizer = Muon([parameter], [bias])
                optimizer.load_state_dict(saved)
            optimizer.zero_grad()
            ((parameter.sin().sum(0) + bias - step) ** 2).sum().backward()
            optimizer.step()
        return torch.cat([parameter.flatten(), bias]).detach()

    assert torch.equal(run(3), run(99))


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (6, 4, 4)])
def test_update_rms_is_what_was_asked_for(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape, generator=torch_generator("muon rms"))
    Muon([parameter], [], MuonConfig(lr=0.01, update_rms=0.2)).step()
    rms = parameter.detach().square().mean().sqrt().item()
    assert 0.7 * 0.002 < rms < 1.3 * 0.002  # Newton-Schulz leaves singular values within about [0.7, 1.2]
