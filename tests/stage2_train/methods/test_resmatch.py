from pathlib import Path

import pytest
import torch

from stage2_train.config import ResmatchConfig
from stage2_train.methods import METHODS
from stage2_train.methods.resmatch import guidance
from stage2_train.networks import Networks
from stage2_train.pseudo_labels import mask_iou
from tests.stage2_train.methods.scripted import Scripted, picture
from tests.stage2_train.miniature import batch_of, plain_config

WEAK = torch.tensor([[[0.9, 0.7, 0.1, 0.1]] * 4])[None]  # s: the two left columns, mean .8 on them
STRONG = torch.tensor([[[0.1, 0.8, 0.8, 0.1]] * 4])  # r: the two middle columns; IoU(s, r) = 4 / 12


def test_weight_is_quality_times_agreement() -> None:
    assert guidance(WEAK, STRONG, ResmatchConfig(min_weight=0.0)).tolist() == pytest.approx([0.8 / 3])


@pytest.mark.parametrize(
    ("config", "weight"),
    [
        (ResmatchConfig(quality_power=0.0, min_weight=0.0), 1 / 3),
        (ResmatchConfig(agreement_power=0.0, min_weight=0.0), 0.8),
        (ResmatchConfig(quality_power=2.0, agreement_power=2.0, min_weight=0.0), 0.64 / 9),
        (ResmatchConfig(min_weight=0.5), 0.5),
    ],
)
def test_exponents_and_floor(config: ResmatchConfig, weight: float) -> None:
    assert guidance(WEAK, STRONG, config).tolist() == pytest.approx([weight])


def test_an_empty_object_has_no_quality() -> None:
    empty = torch.full((1, 1, 4, 4), 0.2)
    assert guidance(empty, torch.zeros(1, 4, 4), ResmatchConfig(min_weight=0.0)).tolist() == [0.0]


def test_mask_iou_by_hand() -> None:
    a = torch.stack((picture("##..", "##.."), picture("....", "....")))
    b = torch.stack((picture(".##.", ".##."), picture("....", "....")))
    assert mask_iou(a, b).tolist() == pytest.approx([2 / 6, 0.0])
    assert mask_iou(a[:1], b[1:]).tolist() == [0.0]


def test_the_loss_is_fixmatchs_times_the_guidance(mini_root: Path) -> None:
    weak, strong = torch.full((1, 32, 32), 0.1), torch.full((2, 32, 32), 0.2)
    weak[:, :16], strong[:, :8] = 0.9, 0.8
    losses = {}
    for name in ("fixmatch", "resmatch"):
        config = plain_config(mini_root, name, batch_labelled=1, batch_unlabelled=1)
        output = METHODS[name](config).loss(Networks(Scripted(weak, strong)), batch_of(config))
        losses[name] = float(output.metrics["unlabelled_loss"])
    weight = float(guidance(weak[None], strong[1:], config.resmatch))
    assert 0 < weight < 1 and output.metrics["sample_weight"] == pytest.approx(weight)
    assert losses["resmatch"] == pytest.approx(weight * losses["fixmatch"], rel=1e-5)
