"""The choice among objects is a softmax over their mean logits, and absent objects never compete."""

import torch

from stage2_train.tiny.heads import select_loss
from stage2_train.tiny.pool import MAX_OBJECTS

OBJECTS_B44 = torch.tensor([[[0, 1, 1, 0], [0, 1, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0]]])


def margins(first: float, second: float) -> torch.Tensor:
    return first * (OBJECTS_B44 == 1).float() + second * (OBJECTS_B44 == 2).float()


def test_is_the_cross_entropy_of_mean_logits() -> None:
    expected = torch.nn.functional.cross_entropy(torch.tensor([[0.5, 2.0]]), torch.tensor([1]))
    torch.testing.assert_close(select_loss(margins(0.5, 2.0), OBJECTS_B44, torch.tensor([1])), expected)


def test_sentences_of_one_image_share_its_objects() -> None:
    margin_PHW = torch.cat((margins(9.0, -9.0), margins(-9.0, 9.0)))
    assert select_loss(margin_PHW, OBJECTS_B44, torch.tensor([0, 1])) < 1e-3
    assert select_loss(margin_PHW, OBJECTS_B44, torch.tensor([1, 0])) > 10


def test_a_coarser_map_is_read_by_area() -> None:
    margin_P22 = torch.nn.functional.avg_pool2d(margins(3.0, 0.0), 2)
    assert select_loss(margin_P22, OBJECTS_B44, torch.tensor([0])) < select_loss(
        margin_P22, OBJECTS_B44, torch.tensor([1])
    )


def test_the_background_and_empty_slots_get_no_share() -> None:
    loss = select_loss(torch.full((1, 4, 4), 50.0), OBJECTS_B44, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
    assert MAX_OBJECTS > 2
