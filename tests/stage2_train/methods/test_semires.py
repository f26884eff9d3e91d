import dataclasses
import math
from pathlib import Path

import pytest
import torch

from stage2_train.config import SemiresConfig
from stage2_train.methods import METHODS
from stage2_train.methods.semires import best_match, composite, pixel_weight, refine
from stage2_train.networks import Networks
from tests.stage2_train.methods.scripted import Scripted, picture
from tests.stage2_train.miniature import batch_of, plain_config

MASK = picture("##..", "##..", "....", "....")  # |s| = 4
TIGHT = picture("##..", "#...", "....", "....")  # inside s: IoU 3/4, |s&c|/|c| = 1, |s&c|/|s| = 3/4
LOOSE = picture("####", "####", "....", "....")  # holds s: IoU 4/8, |s&c|/|c| = 1/2, |s&c|/|s| = 1
PART = picture(".#..", "....", "....", "....")  # inside s: IoU 1/4, |s&c|/|c| = 1
OTHER = picture("....", "....", "..##", "..##")
NONE = torch.zeros(4, 4, dtype=torch.bool)


def stack(*masks: torch.Tensor) -> torch.Tensor:
    return torch.stack(masks)[None]


def test_iom_takes_the_candidate_of_highest_iou() -> None:
    found, matched = best_match(MASK[None], stack(OTHER, LOOSE, TIGHT, NONE), 0.5)
    assert torch.equal(found[0], TIGHT) and matched.tolist() == [True]


@pytest.mark.parametrize(("least", "matched"), [(0.49, True), (0.5, False)])
def test_iom_needs_more_than_the_least_iou(least: float, matched: bool) -> None:
    assert best_match(MASK[None], stack(LOOSE, PART), least)[1].tolist() == [matched]


def test_cpi_unites_what_lies_inside_or_holds_the_mask() -> None:
    found, matched = composite(MASK[None], stack(PART, TIGHT, OTHER, NONE), 0.7)
    assert torch.equal(found[0], PART | TIGHT) and matched.tolist() == [True]
    found, _ = composite(MASK[None], stack(PART, LOOSE, OTHER, NONE), 0.7)
    assert torch.equal(found[0], LOOSE | PART)


def test_cpi_needs_more_than_the_overlap() -> None:
    assert composite(MASK[None], stack(OTHER, NONE), 0.7)[1].tolist() == [False]
    half_out = picture(".##.", "....", "....", "....")  # |s&c|/|c| = 1/2, |s&c|/|s| = 1/4
    assert composite(MASK[None], stack(half_out), 0.5)[1].tolist() == [False]
    assert composite(MASK[None], stack(half_out), 0.49)[1].tolist() == [True]


@pytest.mark.parametrize("match", ["iom", "cpi"])
def test_an_empty_mask_or_no_candidate_matches_nothing(match: str) -> None:
    config = SemiresConfig(match=match)  # type: ignore[arg-type]
    prob = torch.where(MASK, 0.9, 0.1)[None, None]
    empty = torch.full((1, 1, 4, 4), 0.1)
    assert refine(empty, stack(MASK, NONE), config)[2].tolist() == [False]
    assert refine(prob, stack(NONE, NONE), config)[2].tolist() == [False]


def test_pixel_weight_by_hand() -> None:
    weight = pixel_weight(torch.tensor([0.0, 0.25, 0.5, 1.0]), SemiresConfig())
    top = 1 / math.sqrt(0.2 * math.pi)
    by_hand = [
        1.3 - math.exp(-1.25) * top,
        1.3 - math.exp(-0.3125) * top,
        1.3 - top,
        1.3 - math.exp(-1.25) * top,
    ]
    assert weight.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert weight[2] == pytest.approx(0.038, abs=5e-4) and weight[0] == pytest.approx(0.939, abs=5e-4)
    assert (pixel_weight(torch.tensor([0.5]), SemiresConfig(weight_offset=1.0)) == 0).all()


def test_matched_masks_count_fully_and_the_rest_pixel_by_pixel() -> None:
    prob = torch.where(MASK, 0.9, 0.3)[None, None].expand(2, 1, 4, 4)
    candidates = torch.cat((stack(TIGHT), stack(OTHER)))
    label, weight, matched = refine(prob, candidates, SemiresConfig())
    assert matched.tolist() == [True, False]
    assert torch.equal(label[0] == 1, TIGHT) and torch.equal(label[1] == 1, MASK)
    assert (weight[0] == 1).all()
    assert torch.allclose(weight[1], pixel_weight(prob[1, 0], SemiresConfig()))


def test_the_whole_loss_by_hand(mini_root: Path) -> None:
    """One unlabelled sample without a match: cross-entropy of every pixel times its weight."""
    config = plain_config(mini_root, "semires", batch_labelled=1, batch_unlabelled=1)
    config = dataclasses.replace(
        config,
        loss=dataclasses.replace(
            config.loss,
            lambda_labelled=0.0,
            unlabelled=dataclasses.replace(config.loss.unlabelled, ce_weight=1.0, dice_weight=0.0),
        ),
    )
    batch = batch_of(config)
    none = torch.zeros(1, 2, 32, 32, dtype=torch.bool)
    batch = dataclasses.replace(batch, unlabelled=dataclasses.replace(batch.unlabelled, candidates_BMHW=none))
    weak = torch.full((1, 32, 32), 0.2)
    weak[:, :16] = 0.9
    strong = torch.full((2, 32, 32), 0.4)
    output = METHODS["semires"](config).loss(Networks(Scripted(weak, strong)), batch)
    weight_top, weight_low = pixel_weight(torch.tensor([0.9, 0.2]), config.semires).tolist()
    by_hand = 0.5 * (-math.log(0.4) * weight_top - math.log(0.6) * weight_low)
    assert output.loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert output.metrics["matched"] == 0 and output.metrics["coverage"] == 1
