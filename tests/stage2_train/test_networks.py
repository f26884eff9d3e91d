import math
from types import SimpleNamespace

import pytest
import torch

from stage2_train.networks import Networks, join_texts, weak_text


def test_the_network_says_where_the_object_is() -> None:
    """The second class is the foreground; no gradient is kept."""
    student = torch.nn.Module()
    student.shift = torch.nn.Parameter(torch.tensor(2.0))
    student.forward = lambda *given: torch.stack((0 * student.shift, student.shift)).reshape(1, 2, 1, 1)
    image_BHW3 = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)
    found = Networks(student).weak_prob(image_BHW3, torch.zeros(1, 1), torch.ones(1, 1))
    assert found.item() == pytest.approx(1 / (1 + math.exp(-2.0))) and not found.requires_grad


class Embedder(torch.nn.Module):
    """Of three texts the last is another one."""

    def text_embedding(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.mode = self.training
        return torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def test_texts_are_compared_without_dropout() -> None:
    part = SimpleNamespace(
        candidate_ids_BKT=torch.tensor([[[5], [6], [7]]]),
        candidate_mask_BKT=torch.ones(1, 3, 1, dtype=torch.bool),
        choice_uniform_B=torch.tensor([0.9]),
    )
    student = Embedder().train()
    ids_BT, _, share = Networks(student).strong_text(part, 0.8)  # type: ignore[arg-type]
    assert ids_BT.tolist() == [[6]] and float(share) == pytest.approx(2 / 3)
    assert student.mode is False and student.training


def test_join_texts_pads_with_masked_zeros() -> None:
    short = (torch.tensor([[5, 6]]), torch.tensor([[True, True]]))
    long = (torch.tensor([[7, 8, 9]]), torch.tensor([[True, True, False]]))
    ids, mask = join_texts(short, long)
    assert ids.tolist() == [[5, 6, 0], [7, 8, 9]]
    assert mask.tolist() == [[True, True, False], [True, True, False]]


def test_the_weak_text_is_the_original() -> None:
    part = SimpleNamespace(
        candidate_ids_BKT=torch.tensor([[[5, 6], [7, 0]]]),
        candidate_mask_BKT=torch.tensor([[[True, True], [True, False]]]),
    )
    ids_BT, token_mask_BT = weak_text(part)  # type: ignore[arg-type]
    assert ids_BT.tolist() == [[5, 6]] and token_mask_BT.tolist() == [[True, True]]
