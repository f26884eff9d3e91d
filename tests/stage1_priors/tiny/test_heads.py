"""Training-only heads: targets by hand, gradients where they belong."""

import dataclasses

import pytest
import torch

from stage1_priors.tiny.data import ask, collate
from stage1_priors.tiny.heads import LossConfig, TrainingHeads, assign_patches, losses, soft_coordinates
from stage1_priors.tiny.model import TinyModelConfig, build_model, patch_rows_columns, patchify
from stage1_priors.tiny.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


def as_grid(values_P: torch.Tensor) -> torch.Tensor:
    rows_P, columns_P = patch_rows_columns().T
    grid = torch.zeros(8, 8, dtype=values_P.dtype)
    grid[rows_P, columns_P] = values_P
    return grid


def test_patch_order_is_that_of_the_pixels() -> None:
    grid = torch.arange(64.0).view(1, 1, 8, 8).repeat(1, 3, 1, 1)
    pixels = grid.repeat_interleave(14, 2).repeat_interleave(14, 3)
    assert torch.equal(as_grid(patchify(pixels)[0, :, 0]), grid[0, 0])


def test_assign_patches_by_hand() -> None:
    # A box over rows 0-1, columns 0-1 and an overlapping one over rows 1-2, columns 1-2; the third is no object.
    boxes = torch.tensor([[[0, 0, 28, 28], [14, 14, 42, 42], [0, 0, 112, 112]]]).float()
    grid = as_grid(assign_patches(boxes, torch.tensor([2]))[0])
    expected = torch.full((8, 8), -1)
    expected[:2, :2] = 0
    expected[1:3, 1:3] = 1
    expected[1, 1] = grid[1, 1]  # equally near to both
    assert torch.equal(grid, expected) and grid[1, 1] in (0, 1)


def test_soft_coordinates() -> None:
    soft = soft_coordinates(torch.tensor([0.0, 50.4, 112.0]), 0.7)
    assert torch.allclose(soft.sum(1), torch.ones(3)) and soft.argmax(1).tolist() == [0, 50, 112]
    wide = soft_coordinates(torch.tensor([50.0]), 2.5)
    spread = ((torch.arange(113) - 50.0) ** 2 * wide).sum().sqrt()
    assert abs(spread - 2.5) < 0.01


@pytest.fixture(scope="module")
def parts():
    model = build_model(TinyModelConfig(num_vision_layers=1, num_text_layers=3), TOKENIZER, seed=0)
    heads = TrainingHeads(128)
    batch = collate([ask("test", 4, index, 2) for index in range(2)], TOKENIZER)
    return model, heads, batch, torch.tensor(TOKENIZER.convert_tokens_to_ids([str(n) for n in range(113)]))


def test_loss_reaches_every_parameter(parts) -> None:
    model, heads, batch, number_ids = parts
    loss, values = losses(model, heads, batch, number_ids, 2.0, LossConfig())
    loss.backward()
    for module in (model, heads):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            parameter.grad = None
    assert set(values) == {
        *("coordinates", "other_tokens", "object", "attributes", "relative_box", "absolute_box", "pointer"),
    }


def test_zero_weights_give_the_heads_zero_gradient(parts) -> None:
    model, heads, batch, number_ids = parts
    none = {"object_": 0.0, "attributes": 0.0, "relative_box": 0.0, "absolute_box": 0.0, "pointer": 0.0}
    loss, _ = losses(model, heads, batch, number_ids, 2.0, dataclasses.replace(LossConfig(), **none))
    loss.backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in heads.parameters())
    assert model.model.visual.merger.mlp[0].weight.grad.abs().max() > 0
    for parameter in (*model.parameters(), *heads.parameters()):
        parameter.grad = None
