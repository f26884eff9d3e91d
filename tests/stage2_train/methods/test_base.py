import pytest
import torch

from stage2_train.losses import IGNORE, supervised_loss
from stage2_train.methods.base import confident_label, join_texts, per_sample


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
