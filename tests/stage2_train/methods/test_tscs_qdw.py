import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stage2_train.backbones.images import normalise_image
from stage2_train.config import EmaConfig
from stage2_train.methods import METHODS
from stage2_train.methods.base import StepOutput
from stage2_train.networks import Networks
from stage2_train.pseudo_labels import confident_label
from tests.stage2_train.methods.scripted import Scripted
from tests.stage2_train.miniature import batch_of, plain_config


def run(root: Path, weak: torch.Tensor, strong: torch.Tensor, join_iou: float) -> StepOutput:
    """One unlabelled sample; the labelled loss and Dice are off."""
    config = plain_config(root, "tscs_qdw", batch_labelled=1, batch_unlabelled=1)
    unlabelled = dataclasses.replace(config.loss.unlabelled, ce_weight=1.0, dice_weight=0.0)
    config = dataclasses.replace(
        config,
        loss=dataclasses.replace(config.loss, lambda_labelled=0.0, unlabelled=unlabelled),
        tscs_qdw=dataclasses.replace(config.tscs_qdw, join_iou=join_iou),
    )
    both = torch.cat((torch.full_like(strong, 0.5), strong))
    return METHODS["tscs_qdw"](config).loss(Networks(Scripted(weak, both)), batch_of(config))


def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher: upper half .6 (foreground, unsure), lower half .1. Student: upper quarter .8, the rest .2. IoU = 1/2."""
    weak, strong = torch.full((1, 32, 32), 0.1), torch.full((1, 32, 32), 0.2)
    weak[:, :16], strong[:, :8] = 0.6, 0.8
    return weak, strong


def test_an_inconsistent_sample_counts_by_its_consistency(mini_root: Path) -> None:
    output = run(mini_root, *maps(), join_iou=0.95)
    assert output.metrics["joined"] == 0 and output.metrics["consistency"] == pytest.approx(0.5)
    assert output.loss.item() == pytest.approx(
        0.5 * -math.log(0.8), rel=1e-5
    )  # the sure lower half, times IoU
    assert output.metrics["coverage"] == 0.5


def test_a_consistent_sample_is_a_labelled_one(mini_root: Path) -> None:
    """Every pixel of the teacher's mask, and not by its IoU; both classes alike, as in every pseudo-label."""
    output = run(mini_root, *maps(), join_iou=0.49)
    assert output.metrics["joined"] == 1 and output.metrics["coverage"] == 1
    foreground = (-math.log(0.8) - math.log(0.2)) / 2
    background = -math.log(0.8)
    assert output.loss.item() == pytest.approx((foreground + background) / 2.0, rel=1e-5)


def test_joining_needs_more_than_the_threshold(mini_root: Path) -> None:
    assert run(mini_root, *maps(), join_iou=0.5).metrics["joined"] == 0


@pytest.mark.parametrize("join_iou", [0.95, 0.0])
def test_a_sentence_nothing_is_found_for_is_not_taught_as_background(
    mini_root: Path, join_iou: float
) -> None:
    nothing = torch.full((1, 32, 32), 0.1)
    output = run(mini_root, nothing, nothing, join_iou=join_iou)
    assert output.metrics["joined"] == 0 and output.metrics["consistency"] == 0
    assert output.loss.item() == 0


def test_for_export_too_the_student_looks_at_the_strong_view(mini_root: Path) -> None:
    class Noted(Scripted):
        def forward(self, image: torch.Tensor, *rest: Any) -> torch.Tensor:
            seen.append(image)
            return super().forward(image, *rest)

    config = plain_config(mini_root, "tscs_qdw", batch_labelled=1, batch_unlabelled=1)
    part, seen = batch_of(config).unlabelled, list[torch.Tensor]()
    assert part is not None and not torch.equal(part.weak_BHW3, part.strong_BHW3)
    both = Noted(*maps())
    METHODS["tscs_qdw"](config).pseudo(Networks(both, both), part)
    views = (normalise_image(one) for one in (part.weak_BHW3, part.strong_BHW3))
    assert all(torch.equal(one, view) for one, view in zip(seen, views, strict=True))


def test_an_average_that_has_no_student_left_teaches_its_confident_pixels_alone(mini_root: Path) -> None:
    """It would agree with itself, and every mask would be taught whole."""
    config = plain_config(mini_root, "tscs_qdw", batch_labelled=1, batch_unlabelled=1)
    config = dataclasses.replace(config, ema=EmaConfig(decay=0.9, teacher=True, export=True))
    part = batch_of(config).unlabelled
    assert part is not None
    weak = torch.full((1, 32, 32), 0.3)
    weak[:, :8], weak[:, 8:16] = 0.95, 0.6
    method = METHODS["tscs_qdw"](config)
    label_BHW = method.pseudo(Networks(Scripted(weak, weak)), part).label_BHW
    assert torch.equal(label_BHW, confident_label(weak[:, None], config.tscs_qdw.threshold))
    whole = method.pseudo(Networks(Scripted(weak, weak), Scripted(weak, weak)), part).label_BHW
    assert torch.equal(whole, (weak >= 0.5).long()) and not torch.equal(whole, label_BHW)
