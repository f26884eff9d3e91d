"""States, thresholds and pseudo-labels by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import DataError
from stage2_train.rple.policy import (
    Actor,
    Critic,
    PolicyConfig,
    band_px,
    project_action,
    pseudo_label,
    relabelled,
    shares,
    state,
)

X = 255


OURS, ORDERED = PolicyConfig(), PolicyConfig(own_side=False)


@pytest.mark.parametrize("config", [OURS, ORDERED, PolicyConfig(start_fg=0.9, start_bg=0.05, margin=0.2)])
def test_actor_starts_at_its_thresholds(config: PolicyConfig) -> None:
    torch.manual_seed(0)
    action_BA = Actor(config)(torch.rand(50, 6))
    start_A = torch.tensor([config.start_fg, config.start_bg])
    assert torch.allclose(action_BA, start_A.expand(50, 2), atol=0.02)


def test_the_papers_start_is_the_default() -> None:
    assert (OURS.start_fg, OURS.start_bg) == (0.70, 0.20)


@pytest.mark.parametrize("config", [OURS, ORDERED])
def test_thresholds_stay_allowed_even_when_saturated(config: PolicyConfig) -> None:
    actor = Actor(config)
    for scale in (-1e3, 1e3):
        with torch.no_grad():
            actor.net[-1].bias.copy_(torch.tensor([scale, 1e3]))
        tau_fg, tau_bg = actor(torch.rand(4, 6)).unbind(dim=1)
        assert (tau_fg <= 1).all() and (tau_bg >= 0).all()
        assert (tau_fg - tau_bg >= config.margin - 1e-6).all()
        assert ((tau_fg > 0.5) & (tau_bg < 0.5)).all() or not config.own_side


def test_networks_have_the_published_shapes() -> None:
    shapes = [[tuple(p.shape) for p in net.parameters() if p.ndim == 2] for net in (Actor(OURS), Critic())]
    assert shapes == [[(64, 6), (64, 64), (2, 64)], [(64, 8), (64, 64), (1, 64)]]


@given(st.floats(-3, 3), st.floats(-3, 3), st.booleans())
def test_projection_allows_any_action(tau_fg: float, tau_bg: float, own_side: bool) -> None:
    config = PolicyConfig(own_side=own_side)
    found_fg, found_bg = project_action(torch.tensor([[tau_fg, tau_bg]]), config)[0].tolist()
    assert 0 <= found_bg < found_fg <= 1 and found_fg - found_bg >= config.margin - 1e-6
    assert found_bg < 0.5 < found_fg or not own_side


@pytest.mark.parametrize(("config", "rows"), [(OURS, 3), (ORDERED, 5)])
def test_projection_keeps_allowed_actions(config: PolicyConfig, rows: int) -> None:
    action_BA = torch.tensor([[0.7, 0.2], [1.0, 0.0], [0.55, 0.45], [0.95, 0.72], [0.4, 0.1]])
    kept_B = (project_action(action_BA, config) == action_BA).all(dim=1)
    assert kept_B.tolist() == [row < rows for row in range(5)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"margin": 0.0}, "policy.margin is 0.0"),
        ({"start_fg": 0.5}, "start_fg 0.5"),
        ({"start_bg": 0.5}, "start_bg 0.5"),
        ({"start_fg": 0.3, "start_bg": 0.29, "own_side": False}, "start_bg 0.29"),
    ],
)
def test_a_start_that_is_not_allowed_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PolicyConfig(**wrong)


def test_thresholds_are_inclusive_and_per_sample() -> None:
    fused_B1HW = torch.tensor([[[[0.2, 0.3, 0.7, 0.9]]], [[[0.2, 0.3, 0.7, 0.9]]]])
    label_BHW = pseudo_label(fused_B1HW, torch.tensor([0.7, 0.8]), torch.tensor([0.2, 0.3]), 0)
    assert label_BHW.tolist() == [[[0, X, 1, 1]], [[0, 0, X, 1]]]


def test_band_ignores_both_sides_of_a_boundary() -> None:
    fused_B1HW = torch.tensor([[[[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]]]).expand(1, 1, 6, 6)
    tau_fg_B, tau_bg_B = torch.tensor([0.7]), torch.tensor([0.2])
    assert pseudo_label(fused_B1HW, tau_fg_B, tau_bg_B, 1)[0, 3].tolist() == [0, 0, X, X, 1, 1]
    assert pseudo_label(fused_B1HW, tau_fg_B, tau_bg_B, 2)[0, 3].tolist() == [0, X, X, X, X, 1]


def test_what_is_not_selected_has_a_boundary_too() -> None:
    fused_B1HW = torch.tensor([[[[1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]]]]).expand(1, 1, 3, 7)
    label_BHW = pseudo_label(fused_B1HW, torch.tensor([0.7]), torch.tensor([0.2]), 1)
    assert label_BHW[0, 1].tolist() == [1, 1, X, X, X, 0, 0]


def test_image_border_is_no_boundary() -> None:
    label_BHW = pseudo_label(torch.ones(1, 1, 4, 4), torch.tensor([0.7]), torch.tensor([0.2]), 2)
    assert (label_BHW == 1).all()


@pytest.mark.parametrize(("size", "band"), [(480, 3), (320, 2), (160, 1), (96, 0)])
def test_band_scales_with_resolution(size: int, band: int) -> None:
    assert band_px(size) == band


def test_state_by_hand() -> None:
    fused_B1HW = torch.tensor([[[[0.0, 0.5], [0.5, 1.0]]]])
    weak_B1HW = torch.tensor([[[[0.0, 0.5], [0.1, 0.8]]]])
    state_BS = state(
        fused_B1HW, weak_B1HW, pseudo_label(fused_B1HW, torch.tensor([0.7]), torch.tensor([0.2]), 0)
    )
    assert state_BS[0].tolist() == pytest.approx([0.5, 0.125**0.5, 0.25, 0.25, 0.5, 1 - 0.6 / 4])


def test_other_labels_change_the_shares_alone() -> None:
    fused_B1HW, weak_B1HW = (
        torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    one, other = (
        pseudo_label(fused_B1HW, *torch.tensor([[fg] * 3, [bg] * 3]), 0)
        for fg, bg in ((0.7, 0.2), (0.9, 0.4))
    )
    assert torch.equal(
        relabelled(state(fused_B1HW, weak_B1HW, one), other), state(fused_B1HW, weak_B1HW, other)
    )


def test_shares_add_up() -> None:
    assert shares(torch.tensor([[[0, 1, X, 1]]])).tolist() == [[0.5, 0.25, 0.25]]
