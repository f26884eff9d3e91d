"""Fusion by reliability: who wins an argument, by hand, and that r is found from agreement alone."""

from pathlib import Path

import pytest
import torch

from shared.errors import DataError
from stage2_train.arbitration import R_RANGE, Arbiter
from stage2_train.spm import SpmConfig
from tests.stage2_train.miniature import mini_config

LEFT, RIGHT = (torch.zeros(1, 1, 8, 8) for _ in range(2))
LEFT[..., :2] = 1.0
RIGHT[..., 6:] = 1.0
RHO = 0.04


def trusted(q: float) -> torch.Tensor:
    """A calibrated prior that says LEFT."""
    return q * LEFT + (1 - q) * RHO


def arbiter(r: float) -> Arbiter:
    one = Arbiter()
    one.sums_4 = torch.tensor([100 * r, 100.0, 100 * RHO, 100.0])
    return one


@pytest.mark.parametrize(("q", "r", "winner"), [(0.95, 0.5, "prior"), (0.55, 0.9, "network")])
def test_the_more_reliable_one_wins(q: float, r: float, winner: str) -> None:
    fused_B1HW = arbiter(r).fuse(trusted(q), RIGHT, 1e-4)
    at_prior, at_network = float(fused_B1HW[0, 0, 0, 0]), float(fused_B1HW[0, 0, 0, 7])
    elsewhere = float(fused_B1HW[0, 0, 0, 4])
    assert elsewhere < 0.05
    assert (at_prior > 0.7 > 0.2 > at_network) if winner == "prior" else (at_network > 0.5 > 0.2 > at_prior)


def test_equals_in_doubt_leave_it_open() -> None:
    fused_B1HW = arbiter(0.75).fuse(trusted(0.75), RIGHT, 1e-4)
    assert fused_B1HW[0, 0, 0, 0] == pytest.approx(float(fused_B1HW[0, 0, 0, 7]), abs=1e-3)


def test_agreement_is_certain() -> None:
    fused_B1HW = arbiter(0.7).fuse(trusted(0.7), LEFT, 1e-4)
    assert fused_B1HW[0, 0, 0, 0] > 0.98 and fused_B1HW[0, 0, 0, 7] < 0.02


def test_reliability_is_found_from_agreement_alone() -> None:
    """Prior right in 80%, network in 60%, independently: they agree in 48% of the samples."""
    one, generator = Arbiter(), torch.Generator().manual_seed(0)
    for _ in range(200):
        prior = torch.where(torch.rand(32, 1, 1, 1, generator=generator) < 0.8, trusted(0.8), 0.8 * RIGHT)
        weak = torch.where(torch.rand(32, 1, 1, 1, generator=generator) < 0.6, LEFT, torch.zeros(1, 1, 8, 8))
        one.observe(prior, weak, torch.ones(32, dtype=torch.bool))
        one.finish_step(lambda rows: rows)
    assert one.weak_reliability == pytest.approx(0.6, abs=0.07)


def test_rows_without_a_prior_do_not_count_and_bounds_hold() -> None:
    one = Arbiter()
    before = one.sums_4.clone()
    one.observe(trusted(0.9), LEFT, torch.zeros(1, dtype=torch.bool))
    one.finish_step(lambda rows: rows)
    assert torch.allclose(one.sums_4, 0.95 * before)
    assert arbiter(1.0).weak_reliability == R_RANGE[1] and arbiter(0.0).weak_reliability == R_RANGE[0]


def test_needs_a_calibrated_prior(mini_root: Path) -> None:
    with pytest.raises(DataError, match="calibration.enabled"):
        mini_config(mini_root, spm=SpmConfig(rule="arbitrate"))
