import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stage2_train.config import SampleLossConfig
from stage2_train.losses import IGNORE, supervised_loss
from stage2_train.methods.base import (
    Method,
    Networks,
    confident_label,
    join_texts,
    known_prior,
    mask_iou,
    per_sample,
    weak_text,
)
from tests.stage2_train.miniature import mini_config


def test_confident_label() -> None:
    prob = torch.tensor([[[[0.7, 0.69, 0.5, 0.31, 0.3, 0.0, 1.0]]]])
    assert confident_label(prob, 0.7).tolist() == [[[1, IGNORE, IGNORE, IGNORE, 0, 0, 1]]]


def test_per_sample_gives_each_sample_the_same_say() -> None:
    """Sample 0 has one counted pixel, sample 1 has four: a batch mean would weigh them 1:4."""
    logit = torch.zeros(2, 2, 2, 2)
    logit[0, 1] = 2.0
    label = torch.tensor([[[0, IGNORE], [IGNORE, IGNORE]], [[0, 0], [0, 0]]])
    loss, metrics = per_sample(lambda x, y: supervised_loss(x, y), logit, label)
    own = [supervised_loss(logit[i : i + 1], label[i : i + 1])[0] for i in range(2)]
    assert loss == pytest.approx(float(sum(own) / 2))
    assert loss != pytest.approx(float(supervised_loss(logit, label)[0]))
    assert metrics["accuracy"] == pytest.approx(0.5)


def test_join_texts_pads_with_masked_zeros() -> None:
    short = (torch.tensor([[5, 6]]), torch.tensor([[True, True]]))
    long = (torch.tensor([[7, 8, 9]]), torch.tensor([[True, True, False]]))
    ids, mask = join_texts(short, long)
    assert ids.tolist() == [[5, 6, 0], [7, 8, 9]]
    assert mask.tolist() == [[True, True, False], [True, True, False]]


def test_weights_of_samples_leave_the_mean_one_over_all() -> None:
    logit, label = torch.zeros(4, 2, 1, 1), torch.zeros(4, 1, 1, dtype=torch.int64)
    whole, _ = per_sample(lambda x, y: supervised_loss(x, y), logit, label)
    weighted, _ = per_sample(
        lambda x, y: supervised_loss(x, y), logit, label, weight_B=torch.tensor([1.0, 0.0, 0.0, 0.0])
    )
    assert float(weighted) == pytest.approx(float(whole) / 4)


def test_masks_that_found_nothing_do_not_agree() -> None:
    a_BHW = torch.tensor([[[True, True, False]], [[False, False, False]]])
    b_BHW = torch.tensor([[[False, True, True]], [[False, False, False]]])
    assert mask_iou(a_BHW, b_BHW).tolist() == pytest.approx([1 / 3, 0.0])


def test_a_prior_that_is_not_there_is_what_the_network_says() -> None:
    prior_B1HW, weak_B1HW = torch.full((2, 1, 1, 1), 0.9), torch.full((2, 1, 1, 1), 0.2)
    part = SimpleNamespace(prior_B1HW=prior_B1HW, has_prior_B=torch.tensor([True, False]))
    assert known_prior(part, weak_B1HW).flatten().tolist() == pytest.approx([0.9, 0.2])  # type: ignore[arg-type]


def test_parts_of_the_loss_have_their_weights(mini_root: Path) -> None:
    loss = SampleLossConfig(lambda_labelled=3.0, lambda_unlabelled=0.5, rampup_steps=0)
    method = Method(mini_config(mini_root, loss=loss))
    pseudo = SimpleNamespace(label_BHW=torch.tensor([[[0, 1, 1, IGNORE]]]))
    output = method.combine(
        SimpleNamespace(step=0),  # type: ignore[arg-type]
        (torch.tensor(2.0), {}),
        (torch.tensor(8.0), {"ce": torch.tensor(1.0)}),
        pseudo,  # type: ignore[arg-type]
    )
    assert output.loss == 3.0 * 2.0 + 0.5 * 8.0
    assert (output.metrics["labelled_loss"], output.metrics["unlabelled_loss"]) == (2.0, 8.0)
    assert (output.metrics["coverage"], output.metrics["foreground"]) == (0.75, 0.5)
    alone = method.labelled_output(torch.tensor(2.0), {})
    assert alone.loss == 6.0 and alone.metrics["labelled_loss"] == 2.0


def test_the_weak_text_is_the_original() -> None:
    part = SimpleNamespace(
        candidate_ids_BKT=torch.tensor([[[5, 6], [7, 0]]]),
        candidate_mask_BKT=torch.tensor([[[True, True], [True, False]]]),
    )
    ids_BT, token_mask_BT = weak_text(part)  # type: ignore[arg-type]
    assert ids_BT.tolist() == [[5, 6]] and token_mask_BT.tolist() == [[True, True]]


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
