"""Distillation on 4 x 4 maps: the prior's pixels alone, and which samples are taught once they are selected."""

import dataclasses
from pathlib import Path

import pytest
import torch

from shared.config import apply_overrides
from shared.errors import DataError
from stage2_train.batch import Batch, UnlabelledPart
from stage2_train.comparison_config import DistillationConfig
from stage2_train.config import TrainConfig
from stage2_train.losses import IGNORE
from stage2_train.methods.distillation import Distillation
from stage2_train.networks import Networks
from tests.stage2_train.methods.scripted import Scripted, picture
from tests.stage2_train.miniature import batch_of, plain_config

PRIOR = picture("##..", "##..", "....", "....")
AGREED = picture(".##.", ".##.", "....", "....")  # 2 of 6 pixels: IoU 1/3
DOUBTED = picture("...#", "..##", "..##", "..##")  # no pixel in common
NOTHING = picture("....", "....", "....", "....")


def config_of(root: Path, **settings: float) -> TrainConfig:
    return plain_config(root, "distillation", distillation=DistillationConfig(**settings))


def parts(config: TrainConfig, has_prior: tuple[bool, ...] = (True,) * 4) -> tuple[Batch, UnlabelledPart]:
    """A batch whose four unlabelled samples have the same prior: 0.9, 0.6 at one corner of the mask, 0.1 elsewhere."""
    batch = batch_of(config)
    assert batch.unlabelled is not None
    prior_HW = torch.where(PRIOR, 0.9, 0.1)
    prior_HW[0, 0] = 0.6
    part = dataclasses.replace(
        batch.unlabelled,
        prior_B1HW=prior_HW.expand(4, 1, 4, 4).clone(),
        has_prior_B=torch.tensor(has_prior),
    )
    return dataclasses.replace(batch, unlabelled=part), part


def weak(*masks: torch.Tensor) -> Networks:
    return Networks(Scripted(torch.stack([torch.where(mask, 0.8, 0.2) for mask in masks])))


def taught(label_BHW: torch.Tensor) -> list[bool]:
    return [bool((label_HW != IGNORE).any()) for label_HW in label_BHW]


def test_the_prior_alone_is_the_target(mini_root: Path) -> None:
    """Whatever the network thinks; an unsure pixel is ignored, and a row without a proposal."""
    config = config_of(mini_root)
    _, part = parts(config, has_prior=(True, True, False, True))
    pseudo = Distillation(config).pseudo(weak(PRIOR, DOUBTED, PRIOR, NOTHING), part)
    label_HW = PRIOR.long()
    label_HW[0, 0] = IGNORE
    for row, label in enumerate(pseudo.label_BHW):
        assert torch.equal(label, label_HW if row != 2 else torch.full_like(label_HW, IGNORE)), row
    assert part.prior_B1HW is not None and torch.equal(pseudo.target_B1HW, part.prior_B1HW)


@pytest.mark.parametrize(
    ("least", "kept"), [(0.3, [True, True, False, False]), (0.4, [True, False, False, False])]
)
def test_selected_samples_are_those_whose_prior_the_network_shares(
    mini_root: Path, least: float, kept: list[bool]
) -> None:
    config = config_of(mini_root, select_from=0.5, select_iou=least)
    _, part = parts(config)
    pseudo = Distillation(config).pseudo(weak(PRIOR, AGREED, DOUBTED, NOTHING), part)
    assert taught(pseudo.label_BHW) == kept


def test_a_missing_prior_is_shared_by_nobody(mini_root: Path) -> None:
    config = config_of(mini_root, select_from=0.0)
    _, part = parts(config, has_prior=(True, False, True, True))
    pseudo = Distillation(config).pseudo(weak(PRIOR, PRIOR, PRIOR, PRIOR), part)
    assert taught(pseudo.label_BHW) == [True, False, True, True]


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (4, 1.0), (5, 0.5), (9, 0.5)])
def test_samples_are_selected_from_a_share_of_the_steps_on(mini_root: Path, step: int, share: float) -> None:
    config = apply_overrides(config_of(mini_root, select_from=0.5), ["steps=10"])
    batch, _ = parts(config)
    assert batch.unlabelled is not None
    size = batch.labelled.target_BHW.shape[0]
    labelled = dataclasses.replace(batch.labelled, target_BHW=NOTHING.expand(size, 4, 4))
    batch = dataclasses.replace(batch, step=step, labelled=labelled)
    networks = weak(PRIOR, AGREED, DOUBTED, NOTHING)
    networks.student.answers.append(torch.full((size + 4, 4, 4), 0.3))
    output = Distillation(config).loss(networks, batch)
    assert output.metrics["taught_samples"].item() == share
    assert output.pseudo is not None and sum(taught(output.pseudo.label_BHW)) == 4 * share


def test_never_selecting_is_the_default(mini_root: Path) -> None:
    config = apply_overrides(config_of(mini_root), ["steps=10"])
    assert config.distillation.select_from == 1.0
    _, part = parts(config)
    assert taught(Distillation(config).pseudo(weak(*[DOUBTED] * 4), part).label_BHW) == [True] * 4


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.4}, {"threshold": 1.1}, {"select_from": 1.5}, {"select_iou": -0.1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        DistillationConfig(**wrong)
