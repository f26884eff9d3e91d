"""Calibration of the prior: known parameters are found, and only labelled masks are read."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import DataError
from stage2_train.calibration import Calibration, CalibrationConfig, fit
from stage2_train.config import RuntimeConfig
from stage2_train.data import load_data, make_split
from stage2_train.prior_source import calibrate, choose_store, open_priors
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config

HALF = torch.zeros(8, 8, dtype=torch.bool)
HALF[:, :4] = True


def proposals(right_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Crisp proposals that lie on the mask or beside it, and the masks."""
    mask_BGG = HALF.expand(len(right_B), -1, -1)
    hit_BGG = torch.where(right_B[:, None, None], mask_BGG, ~mask_BGG)
    return (255 * hit_BGG).to(torch.uint8), mask_BGG


def test_reliability_follows_confidence() -> None:
    """Samples drawn from a known logistic curve give it back."""
    generator = torch.Generator().manual_seed(0)
    confidence_B = torch.randn(4000, generator=generator) * 0.3 - 1.4
    truth_B = torch.sigmoid(2.0 * (confidence_B + 1.4) / 0.3 + 0.5)
    right_B = torch.rand(4000, generator=generator) < truth_B
    found = fit(*_with(proposals(right_B), confidence_B), ridge=1.0)
    assert found.slope == pytest.approx(2.0, abs=0.2) and found.intercept == pytest.approx(0.5, abs=0.15)
    assert (found.reliability(confidence_B) - truth_B).abs().max() < 0.05


def _with(
    pair: tuple[torch.Tensor, torch.Tensor], confidence_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return pair[0], confidence_B, pair[1]


def test_unknown_confidence_gives_every_row_the_share_of_right_ones() -> None:
    right_B = torch.arange(100) < 75
    found = fit(*_with(proposals(right_B), torch.full((100,), math.nan)), ridge=1.0)
    assert found.slope == 0.0
    assert found.reliability(torch.tensor([math.nan, 0.0])).tolist() == pytest.approx([0.75] * 2, abs=0.01)


def test_ten_right_samples_are_no_certainty() -> None:
    found = fit(*_with(proposals(torch.ones(10, dtype=torch.bool)), torch.linspace(-2, -1, 10)), ridge=1.0)
    assert found.right_share == 1.0
    assert 0.8 < float(found.reliability(torch.tensor([-1.5]))) < 0.99


def test_timid_maps_are_sharpened() -> None:
    """Pixels drawn from twice the logits that the proposal states."""
    generator = torch.Generator().manual_seed(1)
    logit_BGG = 1.5 * torch.where(HALF, 1.0, -1.0) + torch.randn(300, 8, 8, generator=generator)
    mask_BGG = torch.rand(300, 8, 8, generator=generator) < torch.sigmoid(2.0 * logit_BGG)
    proposal_BGG = (255 * torch.sigmoid(logit_BGG)).round().to(torch.uint8)
    found = fit(proposal_BGG, torch.zeros(300), mask_BGG, ridge=1.0)
    assert found.sharpness == pytest.approx(2.0, abs=0.15)


def test_mixture_by_hand() -> None:
    """A half-trusted prior says one half where it says 'object', and next to nothing elsewhere."""
    even = Calibration(
        num_samples=1,
        right_share=0.5,
        centre=0.0,
        scale=1.0,
        slope=0.0,
        intercept=0.0,
        sharpness=1.0,
        base_rate=0.04,
    )
    found = even.apply(torch.tensor([[[255, 0]]], dtype=torch.uint8), torch.zeros(1))
    assert found.tolist() == [
        [[round(255 * 0.5 * (1 - 1 / 510 + 0.04)), round(255 * 0.5 * (1 / 510 + 0.04))]]
    ]


@given(st.floats(-8, 8), st.floats(0.1, 10), st.floats(0, 0.5), st.floats(-5, 5))
def test_order_of_pixels_is_kept(intercept: float, sharpness: float, base_rate: float, z: float) -> None:
    calibration = Calibration(
        num_samples=1,
        right_share=0.5,
        centre=0.0,
        scale=1.0,
        slope=1.0,
        intercept=intercept,
        sharpness=sharpness,
        base_rate=base_rate,
    )
    found = calibration.apply(
        torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16), torch.tensor([z], dtype=torch.float32)
    )
    assert (found.flatten().int().diff() >= 0).all()


def test_only_labelled_masks_are_read(mini_root: Path) -> None:
    config = mini_config(mini_root)
    dataset = load_data(config.data)
    split = make_split(dataset, config.fraction, config.split_seed)
    priors = open_priors(choose_store(config, dataset), config, dataset, dataset.samples("train"))
    labelled = [sample for ref in split.labelled for sample in ref]
    hidden = dataset.without_masks(split.image_ids)
    found = calibrate(priors, hidden, labelled, CalibrationConfig(enabled=True))
    ids = [ref[0].sample_id for ref in split.unlabelled]
    assert found.calibration.num_samples <= len(labelled)
    assert torch.equal(found.read(ids)[1], priors.read(ids)[1])
    assert not torch.equal(found.read(ids)[0], priors.read(ids)[0])
    with pytest.raises(Exception, match="mask"):
        calibrate(priors, hidden, [ref[0] for ref in split.unlabelled], CalibrationConfig(enabled=True))


def test_a_run_records_what_was_found(mini_root: Path, tmp_path: Path) -> None:
    config = mini_config(
        mini_root,
        steps=1,
        calibration=CalibrationConfig(enabled=True),
        runtime=RuntimeConfig(tensorboard=False),
    )
    train(config, tmp_path / "run", recipe="mini", quiet=True)
    assert json.loads((tmp_path / "run" / "calibration.json").read_text())["num_samples"] > 0


def test_bad_settings_are_refused() -> None:
    with pytest.raises(DataError, match="ridge"):
        CalibrationConfig(ridge=0.0)
