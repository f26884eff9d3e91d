"""Losses by hand on a few pixels."""

import math
from typing import Literal

import pytest
import torch

from shared.errors import DataError
from stage2_train.losses import (
    IGNORE,
    UnsupervisedLossConfig,
    mean_over_samples,
    supervised_loss,
    unsupervised_loss,
)


def two_class_logit(foreground_logit: list[float]) -> torch.Tensor:
    """Logits [1, 2, 1, W] whose foreground probability is sigmoid of the values."""
    values = torch.tensor(foreground_logit)
    return torch.stack((torch.zeros_like(values), values))[None, :, None, :].clone().requires_grad_()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_supervised_loss_is_the_weighted_mean_of_counted_pixels() -> None:
    logit = two_class_logit([1.0, -2.0, 9.0])
    loss, metrics = supervised_loss(logit, torch.tensor([[[1, 0, IGNORE]]]))
    expected = (1.5 * -math.log(sigmoid(1.0)) + 0.5 * -math.log(1 - sigmoid(-2.0))) / (1.5 + 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert metrics["accuracy"].item() == 1.0
    loss.backward()
    assert logit.grad is not None and logit.grad[..., 2].abs().max() == 0


def test_nothing_labelled_is_zero_with_zero_gradient() -> None:
    for loss_of in (supervised_loss, lambda a, b: unsupervised_loss(a, b, UnsupervisedLossConfig())):
        logit = two_class_logit([1.0, -2.0])
        loss, _ = loss_of(logit, torch.full((1, 1, 2), IGNORE))
        loss.backward()
        assert loss.item() == 0.0 and logit.grad is not None and logit.grad.abs().max() == 0


def test_unsupervised_loss_by_hand() -> None:
    logit = two_class_logit([1.0, -2.0, 3.0])
    config = UnsupervisedLossConfig()
    loss, metrics = unsupervised_loss(logit, torch.tensor([[[1, 0, IGNORE]]]), config)
    p, q = sigmoid(1.0), sigmoid(-2.0)
    ce = (-math.log(p) - math.log(1 - q)) / 2
    dice = 1 - (2 * p + 1) / (p + q + 1 + 1)
    assert metrics["ce"].item() == pytest.approx(ce, rel=1e-5)
    assert metrics["dice"].item() == pytest.approx(dice, rel=1e-5)
    assert loss.item() == pytest.approx(0.7 * ce + 0.3 * dice, rel=1e-5)
    loss.backward()
    assert logit.grad is not None and logit.grad[..., 2].abs().max() == 0


def test_class_weights_of_pseudo_labels_are_background_then_foreground() -> None:
    logit, label = two_class_logit([1.0, -2.0]), torch.tensor([[[1, 0]]])
    _, metrics = unsupervised_loss(logit, label, UnsupervisedLossConfig(class_weights=(0.9, 1.1)))
    expected = (1.1 * -math.log(sigmoid(1.0)) + 0.9 * -math.log(1 - sigmoid(-2.0))) / 2
    assert metrics["ce"].item() == pytest.approx(expected, rel=1e-5)


def test_dice_counts_only_samples_with_foreground() -> None:
    with_fg = two_class_logit([1.0, -2.0])
    both = torch.cat((with_fg, two_class_logit([4.0, 4.0])))
    label = torch.tensor([[[1, 0]], [[0, 0]]])
    alone = unsupervised_loss(with_fg, label[:1], UnsupervisedLossConfig())[1]["dice"].item()
    assert alone > 0.1
    assert unsupervised_loss(both, label, UnsupervisedLossConfig())[1]["dice"].tolist() == pytest.approx(
        [alone, 0.0]
    )


def test_pixel_weights_scale_and_zero_weight_has_zero_gradient() -> None:
    logit = two_class_logit([1.0, -2.0])
    label = torch.tensor([[[1, 0]]])
    full, _ = unsupervised_loss(logit, label, UnsupervisedLossConfig())
    half, _ = unsupervised_loss(logit, label, UnsupervisedLossConfig(), torch.full((1, 1, 2), 0.5))
    assert half.item() == pytest.approx(0.5 * full.item(), rel=1e-5)
    none, _ = unsupervised_loss(logit, label, UnsupervisedLossConfig(), torch.zeros(1, 1, 2))
    none.backward()
    assert logit.grad is not None and logit.grad.abs().max() == 0


def test_over_all_pixels_a_loss_counts_by_the_share_that_is_selected() -> None:
    label = torch.tensor([[[1, 0, IGNORE, IGNORE]]])
    weight = torch.tensor([[[0.5, 1.0, 1.0, 1.0]]])
    logit = two_class_logit([1.0, -2.0, 3.0, 0.5])
    over_all = UnsupervisedLossConfig(mean_over="all")
    for weights in ((), (weight,)):
        sparse, _ = unsupervised_loss(logit, label, over_all, *weights)
        full, _ = unsupervised_loss(logit, label, UnsupervisedLossConfig(), *weights)
        assert sparse.item() == pytest.approx(0.5 * full.item(), rel=1e-5)
    nothing, _ = unsupervised_loss(logit, torch.full_like(label, IGNORE), over_all)
    assert nothing.item() == 0.0


def test_bad_weights_are_refused() -> None:
    with pytest.raises(DataError, match="mean_over is 'some', not selected or all"):
        UnsupervisedLossConfig(mean_over="some")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="must not be negative"):
        UnsupervisedLossConfig(ce_weight=-1.0)


def test_a_class_may_weigh_nothing() -> None:
    logit = two_class_logit([1.0, -2.0])
    loss, _ = supervised_loss(logit, torch.tensor([[[0, 0]]]), (0.0, 1.0))
    loss.backward()
    assert loss.item() == 0.0 and logit.grad is not None and logit.grad.abs().max() == 0


@pytest.mark.parametrize("mean_over", ["selected", "all"])
def test_a_sample_does_not_know_its_neighbours(mean_over: Literal["selected", "all"]) -> None:
    """Each sample's loss and gradient are those it has alone, a sample without any label among them."""
    generator = torch.Generator().manual_seed(3)
    logit = torch.randn(4, 2, 5, 6, generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 1, IGNORE])[torch.randint(3, (4, 5, 6), generator=generator)]
    label[1], label[2] = IGNORE, 0
    weight = torch.rand(4, 5, 6, generator=generator, dtype=torch.float64)
    config = UnsupervisedLossConfig(class_weights=(0.9, 1.1), mean_over=mean_over)
    for loss_of in (
        lambda x, y, _: supervised_loss(x, y),
        lambda x, y, w: unsupervised_loss(x, y, config, w),
    ):
        together = logit.clone().requires_grad_()
        loss_B, metrics = loss_of(together, label, weight)
        loss_B.sum().backward()
        assert loss_B.shape == (4,) and all(value_B.shape == (4,) for value_B in metrics.values())
        for i in range(4):
            alone = logit[i : i + 1].clone().requires_grad_()
            own, own_metrics = loss_of(alone, label[i : i + 1], weight[i : i + 1])
            own.backward()
            torch.testing.assert_close(loss_B[i : i + 1], own, rtol=1e-12, atol=0)
            assert together.grad is not None and alone.grad is not None
            torch.testing.assert_close(together.grad[i : i + 1], alone.grad, rtol=1e-12, atol=0)
            assert {name: float(value_B[i]) for name, value_B in metrics.items()} == pytest.approx(
                {name: float(value_B) for name, value_B in own_metrics.items()}
            )


def test_every_sample_has_the_same_say() -> None:
    """Sample 0 has one counted pixel, sample 1 has four: a mean over pixels would weigh them 1:4."""
    logit = torch.zeros(2, 2, 2, 2)
    logit[0, 1] = 2.0
    label = torch.tensor([[[0, IGNORE], [IGNORE, IGNORE]], [[0, 0], [0, 0]]])
    loss, metrics = mean_over_samples(*supervised_loss(logit, label))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(2.0)) + math.log(2.0)) / 2)
    assert metrics["accuracy"] == pytest.approx(0.5)


def test_weights_of_samples_leave_the_mean_one_over_all() -> None:
    logit, label = torch.zeros(4, 2, 1, 1), torch.zeros(4, 1, 1, dtype=torch.int64)
    loss_B, metrics = supervised_loss(logit, label)
    whole, _ = mean_over_samples(loss_B, metrics)
    weighted, unweighted = mean_over_samples(loss_B, metrics, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert float(weighted) == pytest.approx(float(whole) / 4)
    assert float(unweighted["ce"]) == pytest.approx(float(whole))
