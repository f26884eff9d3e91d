"""Margin, consistency, coverage and the clipped gain by hand."""

import math

import pytest
import torch

from shared.errors import DataError
from stage2_train.rple.reward import RewardConfig, quality, reward

X = 255


def test_quality_by_hand() -> None:
    """Two selected pixels, one of each class: every class centre is its own pixel's direction."""
    weak = [0.9, 0.2, 0.5]
    label_BHW = torch.tensor([[[1, 0, X]]])
    fused_B1HW = torch.tensor([[[[1.0, 0.1, 0.5]]]])
    margin, consistency, coverage = quality(torch.tensor([[[weak]]]), fused_B1HW, label_BHW, beta=5.0)[
        0
    ].tolist()
    v1, v0 = ((1 - p, p) for p in weak[:2])
    cosine = (v1[0] * v0[0] + v1[1] * v0[1]) / math.hypot(*v1) / math.hypot(*v0)
    assert margin == pytest.approx(1 / (1 + math.exp(-5 * (1 - cosine))), rel=1e-5)
    assert consistency == pytest.approx(0.9)
    assert coverage == pytest.approx(2 / 3)


def test_centres_are_normalised_sums() -> None:
    """Two foreground pixels of different direction share one centre."""
    weak_B1HW = torch.tensor([[[[1.0, 0.5, 0.0]]]])
    found = quality(weak_B1HW, weak_B1HW, torch.tensor([[[1, 1, 0]]]), beta=5.0)[0, 0].item()
    a, b, c = (0.0, 1.0), (math.sqrt(0.5), math.sqrt(0.5)), (1.0, 0.0)
    total = (a[0] + b[0], a[1] + b[1])
    length = math.hypot(*total)
    own = [(total[0] * v[0] + total[1] * v[1]) / length for v in (a, b, c)]
    lead = [own[0] - 0.0, own[1] - b[0], 1.0 - own[2]]
    assert found == pytest.approx(sum(1 / (1 + math.exp(-5 * x)) for x in lead) / 3, rel=1e-5)


def test_a_missing_class_has_a_zero_centre() -> None:
    weak_B1HW = torch.full((1, 1, 2, 2), 1.0)
    margin = quality(weak_B1HW, weak_B1HW, torch.ones(1, 2, 2, dtype=torch.int64), beta=5.0)[0, 0]
    assert margin.item() == pytest.approx(1 / (1 + math.exp(-5)))


def test_nothing_selected_is_zero() -> None:
    weak_B1HW = torch.full((1, 1, 2, 2), 0.5)
    assert quality(weak_B1HW, weak_B1HW, torch.full((1, 2, 2), X), beta=5.0).tolist() == [[0.0, 0.0, 0.0]]


def test_balanced_classes_count_alike() -> None:
    """One foreground pixel against three of background; two pixels are not selected, one on each side of one half."""
    weak_B1HW = torch.tensor([[[[1.0, 0.0, 0.1, 0.0, 0.6, 0.3]]]])
    fused_B1HW = torch.tensor([[[[0.9, 0.0, 0.0, 0.3, 0.6, 0.4]]]])
    label_BHW = torch.tensor([[[1, 0, 0, 0, X, X]]])
    plain_3, found_3 = (
        quality(weak_B1HW, fused_B1HW, label_BHW, beta=5.0, balanced=balanced)[0]
        for balanced in (False, True)
    )
    assert found_3[1].item() == pytest.approx((0.9 + (1.0 + 0.9 + 0.7) / 3) / 2)
    assert plain_3[1].item() == pytest.approx((0.9 + 1.0 + 0.9 + 0.7) / 4)
    assert found_3[2].item() == pytest.approx((1 / 2 + 3 / 4) / 2) and plain_3[2].item() == pytest.approx(
        4 / 6
    )
    copies = [1] * 1 + [3] * 5  # three times the background changes nothing when balanced
    wide = (one.repeat_interleave(torch.tensor(copies), dim=-1) for one in (weak_B1HW, fused_B1HW, label_BHW))
    weak_B1HW, fused_B1HW, label_BHW = wide
    assert torch.allclose(
        quality(weak_B1HW, fused_B1HW, label_BHW, beta=5.0, balanced=True)[0, :2], found_3[:2], atol=1e-6
    )
    assert not torch.allclose(
        quality(weak_B1HW, fused_B1HW, label_BHW, beta=5.0)[0, :2], plain_3[:2], atol=1e-3
    )


def test_balanced_coverage_is_of_the_sides_of_the_target() -> None:
    weak_B1HW, fused_B1HW = torch.tensor([[[[0.9, 0.9]]]]), torch.tensor([[[[0.9, 0.1]]]])
    found = quality(weak_B1HW, fused_B1HW, torch.tensor([[[1, X]]]), beta=5.0, balanced=True)
    assert found[0, 2].item() == pytest.approx((1 + 0) / 2)


def test_a_class_that_is_given_up_earns_nothing_when_balanced() -> None:
    weak_B1HW = torch.tensor([[[[0.9, 0.0, 0.0, 0.0]]]])
    kept = quality(weak_B1HW, weak_B1HW, torch.tensor([[[1, 0, 0, 0]]]), beta=5.0, balanced=True)[0]
    given_up = quality(weak_B1HW, weak_B1HW, torch.tensor([[[X, 0, 0, 0]]]), beta=5.0, balanced=True)[0]
    assert given_up[1].item() == pytest.approx(0.5) and kept[1].item() == pytest.approx(1.0)
    assert given_up[2].item() == pytest.approx(0.5) and kept[0] > given_up[0]


def test_reward_is_the_weighted_gain() -> None:
    before_B3, after_B3 = torch.tensor([[0.5, 0.6, 0.7]]), torch.tensor([[0.6, 0.5, 0.9]])
    previous_BA, action_BA = torch.tensor([[0.7, 0.2]]), torch.tensor([[0.6, 0.3]])
    expected = 1.0 * 0.1 + 0.3 * -0.1 + 0.2 * 0.2 - 0.05 * 0.2
    assert reward(before_B3, after_B3, previous_BA, action_BA, RewardConfig()).item() == pytest.approx(
        expected
    )


def test_reward_is_clipped_and_standing_still_is_zero() -> None:
    low_B3, high_B3, action_BA = torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[0.7, 0.2]])
    assert reward(low_B3, high_B3, action_BA, action_BA, RewardConfig()).item() == 0.5
    assert reward(high_B3, low_B3, action_BA, action_BA, RewardConfig()).item() == -0.5
    assert reward(low_B3, low_B3, action_BA, action_BA, RewardConfig()).item() == 0.0


def test_bad_clip_is_refused() -> None:
    with pytest.raises(DataError, match="reward.clip"):
        RewardConfig(clip=0.0)
