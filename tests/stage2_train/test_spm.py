"""SPM against values worked out by hand from eq. 4-6."""

import math

import pytest
import torch

from shared.errors import DataError
from stage2_train.spm import SpmConfig, agreement, certainty, equalised, foreground_confidence, fuse


def logit(p: float) -> float:
    return math.log(p / (1.0 - p))


def test_certainty_is_zero_at_one_half_and_one_at_the_ends() -> None:
    assert certainty(torch.tensor([0.0, 0.5, 0.75, 1.0])).tolist() == pytest.approx([1.0, 0.0, 0.25, 1.0])


def test_agreement_is_per_sample() -> None:
    a_B1HW = torch.tensor([[[[0.0, 1.0]]], [[[0.2, 0.4]]]])
    b_B1HW = torch.tensor([[[[1.0, 0.0]]], [[[0.2, 0.0]]]])
    assert agreement(a_B1HW, b_B1HW).tolist() == pytest.approx([0.0, 0.8])


def test_fuse_two_pixels_by_hand() -> None:
    prior_B1HW = torch.tensor([[[[0.9, 0.5]]]])
    weak_B1HW = torch.tensor([[[[0.6, 0.1]]]])
    fused_B1HW, lam_B1HW = fuse(prior_B1HW, weak_B1HW, SpmConfig())
    agree = 1.0 - (0.3 + 0.4) / 2
    first = 0.25 + 0.40 * 0.64 - 0.25 * 0.04 + 0.20 * (agree - 0.5)
    second = 0.25 + 0.40 * 0.0 - 0.25 * 0.64 + 0.20 * (agree - 0.5)
    assert lam_B1HW.flatten().tolist() == pytest.approx([first, second], abs=1e-6)
    expected = [
        1 / (1 + math.exp(-(first * logit(0.9) + (1 - first) * logit(0.6)))),
        1 / (1 + math.exp(-(second * logit(0.5) + (1 - second) * logit(0.1)))),
    ]
    assert fused_B1HW.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_lam_is_clamped() -> None:
    config = SpmConfig(base=2.0)
    assert fuse(torch.full((1, 1, 2, 2), 0.9), torch.full((1, 1, 2, 2), 0.5), config)[1].max() == 1.0
    config = SpmConfig(base=-2.0)
    fused_B1HW, lam_B1HW = fuse(torch.full((1, 1, 2, 2), 0.9), torch.full((1, 1, 2, 2), 0.3), config)
    assert lam_B1HW.max() == 0.0
    assert torch.allclose(fused_B1HW, torch.full((1, 1, 2, 2), 0.3), atol=1e-6)


def test_certain_maps_stay_finite() -> None:
    prior_B1HW = torch.tensor([[[[0.0, 1.0]]]])
    fused_B1HW, _ = fuse(prior_B1HW, 1.0 - prior_B1HW, SpmConfig())
    assert torch.isfinite(fused_B1HW).all()


def test_eps_bounds_what_both_maps_can_say() -> None:
    prior_B1HW, weak_B1HW = torch.tensor([[[[1.0, 0.9]]]]), torch.tensor([[[[0.0, 0.3]]]])
    fused_B1HW, lam_B1HW = fuse(prior_B1HW, weak_B1HW, SpmConfig(eps=0.2))
    first, second = lam_B1HW.flatten().tolist()
    expected = [
        1 / (1 + math.exp(-(first * logit(0.8) + (1 - first) * logit(0.2)))),
        1 / (1 + math.exp(-(second * logit(0.8) + (1 - second) * logit(0.3)))),
    ]
    assert fused_B1HW.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_a_confidently_wrong_weak_prediction_is_not_overruled() -> None:
    """The documented limit of eq. 6."""
    fused_B1HW, _ = fuse(torch.full((1, 1, 4, 4), 0.98), torch.full((1, 1, 4, 4), 0.02), SpmConfig())
    assert fused_B1HW.max() < 0.5


def test_symmetry_of_foreground_and_background() -> None:
    generator = torch.Generator().manual_seed(0)
    prior_B1HW, weak_B1HW = (torch.rand(3, 1, 5, 5, generator=generator) for _ in range(2))
    fused_B1HW, lam_B1HW = fuse(prior_B1HW, weak_B1HW, SpmConfig())
    mirrored_B1HW, mirrored_lam_B1HW = fuse(1 - prior_B1HW, 1 - weak_B1HW, SpmConfig())
    assert torch.allclose(1 - fused_B1HW, mirrored_B1HW, atol=1e-6)
    assert torch.allclose(lam_B1HW, mirrored_lam_B1HW, atol=1e-6)


def test_bad_clamp_is_refused() -> None:
    with pytest.raises(DataError, match="spm.eps is 0.5"):
        SpmConfig(eps=0.5)


def test_an_underconfident_prior_can_be_sharpened_by_hand() -> None:
    prior_B1HW, weak_B1HW = torch.full((1, 1, 2, 2), 0.8), torch.full((1, 1, 2, 2), 0.3)
    sharp = 1 / (1 + math.exp(-3 * logit(0.8)))
    expected = fuse(torch.full((1, 1, 2, 2), sharp), weak_B1HW, SpmConfig())
    found = fuse(prior_B1HW, weak_B1HW, SpmConfig(prior_sharpness=3.0))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_prior_is_sharpened_before_eps_bounds_it() -> None:
    prior_B1HW, weak_B1HW = torch.full((1, 1, 2, 2), 0.9), torch.full((1, 1, 2, 2), 0.3)
    lam = fuse(prior_B1HW, weak_B1HW, SpmConfig(eps=0.2, prior_sharpness=2.0))[1].mean().item()
    sharp = 1 / (1 + math.exp(-2 * logit(0.9)))
    agree = 1.0 - (sharp - 0.3)
    by_hand = 0.25 + 0.40 * (2 * sharp - 1) ** 2 - 0.25 * 0.16 + 0.20 * (agree - 0.5)
    assert lam == pytest.approx(by_hand, abs=1e-6)


def test_confidence_moves_the_weight_of_the_prior_by_hand() -> None:
    prior_B1HW, weak_B1HW = torch.full((3, 1, 2, 2), 0.9), torch.full((3, 1, 2, 2), 0.3)
    plain = fuse(prior_B1HW, weak_B1HW, SpmConfig())[1][:, 0, 0, 0]
    config = SpmConfig(confidence_gain=0.4, confidence_centre=0.25)
    moved = fuse(prior_B1HW, weak_B1HW, config, torch.tensor([0.0, 0.75, math.nan]))[1][:, 0, 0, 0]
    assert (moved - plain).tolist() == pytest.approx([-0.1, 0.2, 0.0], abs=1e-6)


@pytest.mark.parametrize("wrong", [{"prior_sharpness": 0.0}, {"confidence_centre": 1.5}])
def test_settings_beyond_the_paper_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        SpmConfig(**wrong)


def test_boldness_is_the_mean_logit_of_the_foreground_of_each_sample() -> None:
    prob_B1HW = torch.tensor([[[[0.9, 0.6, 0.1]]], [[[0.8, 0.5, 0.0]]], [[[0.4, 0.1, 0.0]]]])
    first, second, third = foreground_confidence(prob_B1HW).tolist()
    assert (first, second) == pytest.approx(((logit(0.9) + logit(0.6)) / 2, logit(0.8)), abs=1e-5)
    assert math.isnan(third)


def test_an_underconfident_prior_is_raised_to_the_prediction_and_neither_says_more() -> None:
    prior_B1HW, weak_B1HW = (
        torch.tensor([[[[0.8, 0.8, 0.3, 0.01]]]]),
        torch.tensor([[[[0.99, 0.9, 0.2, 0.001]]]]),
    )
    most = (logit(0.99) + logit(0.9)) / 2
    factor = most / logit(0.8)
    prior, weak = (found.flatten().tolist() for found in equalised(prior_B1HW, weak_B1HW))
    by_hand = [most, most, factor * logit(0.3), -most]
    assert [logit(p) for p in prior] == pytest.approx(by_hand, abs=1e-3)
    assert [logit(p) for p in weak] == pytest.approx([most, logit(0.9), logit(0.2), -most], abs=1e-3)


def test_a_bolder_prior_bounds_both_and_raises_no_prediction() -> None:
    prior_B1HW, weak_B1HW = torch.tensor([[[[0.9, 0.9, 0.001]]]]), torch.tensor([[[[0.6, 0.4, 0.02]]]])
    prior, weak = equalised(prior_B1HW, weak_B1HW)
    assert prior.flatten().tolist() == pytest.approx([0.9, 0.9, 0.1], abs=1e-5)
    assert weak.flatten().tolist() == pytest.approx([0.6, 0.4, 0.1], abs=1e-5)


@pytest.mark.parametrize("absent", ["prior", "weak", "both"])
def test_a_map_without_foreground_has_no_say_in_how_bold_both_are(absent: str) -> None:
    none_B1HW, some_B1HW = torch.tensor([[[[0.3, 0.001]]]]), torch.tensor([[[[0.8, 0.001]]]])
    maps = {"prior": (none_B1HW, some_B1HW), "weak": (some_B1HW, none_B1HW), "both": (none_B1HW, none_B1HW)}[
        absent
    ]
    least = 0.001 if absent == "both" else 0.2
    for given, found in zip(maps, equalised(*maps), strict=True):
        assert found.flatten().tolist() == pytest.approx(
            given.clamp(least, 1 - least).flatten().tolist(), abs=1e-5
        )


def test_equally_confident_maps_that_contradict_each_other_are_near_one_half() -> None:
    """An under-confident prior (0.88, 0.001) of one object, a confident prediction of another, on one background."""
    prior_B1HW, weak_B1HW = torch.full((1, 1, 10, 10), 0.001), torch.full((1, 1, 10, 10), 0.0005)
    prior_B1HW[..., 0, :5], weak_B1HW[..., 0, 5:] = 0.88, 0.99
    plain_B1HW, _ = fuse(prior_B1HW, weak_B1HW, SpmConfig())
    equal_B1HW, _ = fuse(prior_B1HW, weak_B1HW, SpmConfig(equalise=True))
    assert plain_B1HW[..., 0, :5].max() < 0.1, "the network's background wins over the prior's object"
    assert ((equal_B1HW[..., 0, :] > 0.4) & (equal_B1HW[..., 0, :] < 0.6)).all()
    assert (equal_B1HW[..., 1:, :] < 0.02).all()
