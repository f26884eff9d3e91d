"""SESM against eq. 1-3 written out, and its absence."""

import pytest
import torch
import torch.nn.functional as F

from shared.errors import DataError
from stage2_train.segmentor_config import SesmConfig
from stage2_train.sesm import Sesm

B, N, C, T, L = 2, 4, 8, 3, 5
GRID_HW = (2, 2)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(B, N, C, generator=generator)
    text = torch.randn(B, T, L, generator=generator)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return visual, text, mask, torch.rand(B, 1, *GRID_HW, generator=generator)


def module(operator: str) -> Sesm:
    torch.manual_seed(0)
    sesm = Sesm(C, L, operator, SesmConfig())
    with torch.no_grad():
        sesm.alpha.fill_(0.7)
        sesm.beta.fill_(1.3)
    return sesm


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.softmax(query @ key.T / C**0.5, dim=-1) @ value


@pytest.mark.parametrize("operator", ["P", "A"])
def test_residual_is_equation_3(operator: str) -> None:
    sesm = module(operator)
    visual, text, mask, field = inputs()
    residual = sesm(visual, text, mask, field, GRID_HW)
    for b in range(B):
        v, s = visual[b], text[b][mask[b]]
        sem = attend(sesm.sem.query(v), sesm.sem.key(s), sesm.sem.value(s))
        g = F.gelu(sesm.lift(2 * field[b].reshape(N, 1) - 1))
        if operator == "P":
            geo = sesm.geo(g)
        else:
            geo = attend(sesm.geo.query(v), sesm.geo.key(g), sesm.geo.value(g))
        expected = torch.sigmoid(sesm.gate(v)) * (0.7 * sem + 1.3 * geo)
        assert torch.allclose(residual[b], expected, atol=1e-5)


def test_pixel_aligned_operator_is_local_and_attention_is_not() -> None:
    visual, text, mask, field = inputs()
    changed = field.clone()
    changed[:, :, 0, 0] = 1.0 - changed[:, :, 0, 0]
    for operator, moves_elsewhere in (("P", False), ("A", True)):
        sesm = module(operator)
        delta = sesm(visual, text, mask, changed, GRID_HW) - sesm(visual, text, mask, field, GRID_HW)
        assert delta[:, 0].abs().max() > 1e-4
        assert bool(delta[:, 1:].abs().max() > 1e-6) is moves_elsewhere


@pytest.mark.parametrize("operators", ["PPA", "PPAX", "ppaa"])
def test_bad_operators_are_refused(operators: str) -> None:
    with pytest.raises(DataError, match="sesm.operators"):
        SesmConfig(operators=operators)
