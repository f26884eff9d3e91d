import copy
from pathlib import Path

import pytest
import torch

from stage2_train.config import CatmConfig
from stage2_train.losses import IGNORE
from stage2_train.methods import METHODS
from stage2_train.methods.catm import class_label, confidence_sums, follow
from stage2_train.networks import Networks
from tests.stage2_train.miniature import batch_of, model_of, plain_config


def test_each_class_has_its_threshold() -> None:
    prob = torch.tensor([[[[0.95, 0.75, 0.55, 0.35, 0.15, 0.05]]]])
    label = class_label(prob, torch.tensor([0.9, 0.7]))
    assert label.tolist() == [[[1, 1, IGNORE, IGNORE, IGNORE, 0]]]


def test_sums_by_hand() -> None:
    prob = torch.tensor([[[[0.9, 0.7], [0.5, 0.2]]]])
    assert confidence_sums(prob)[0].flatten().tolist() == pytest.approx([0.8, 1.0, 2.1, 3.0])


def test_thresholds_follow_the_mean_confidence() -> None:
    config = CatmConfig(start=0.7, momentum=0.9)
    sums = torch.tensor([[[0.8, 1.0], [1.2, 2.0]], [[2.8, 3.0], [0.0, 0.0]]])  # means .9 and .6
    assert follow(torch.tensor([0.7, 0.7]), sums, config).tolist() == pytest.approx([0.72, 0.69])


def test_thresholds_stay_in_range_and_a_missing_class_keeps_its_own() -> None:
    config = CatmConfig(start=0.7, momentum=0.0, lowest=0.6, highest=0.8)
    sums = torch.tensor([[[9.9, 10.0], [0.0, 0.0]]])
    assert follow(torch.tensor([0.7, 0.65]), sums, config).tolist() == pytest.approx([0.8, 0.65])


def test_thresholds_move_once_per_step_from_the_whole_batch_and_travel(mini_root: Path) -> None:
    config = plain_config(mini_root, "catm", catm=CatmConfig(momentum=0.5))
    method, networks = METHODS["catm"](config), Networks(model_of(config))
    blocks = []
    for key in range(2):
        weak = method.loss(networks, batch_of(config, key)).pseudo.weak_B1HW
        blocks.append(confidence_sums(weak))
        assert method.threshold_2.tolist() == pytest.approx([0.7, 0.7])
    elsewhere = confidence_sums(torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    figures = method.finish_step(lambda rows: torch.cat((rows, elsewhere)))
    blocks += [elsewhere, elsewhere]
    expected = follow(torch.tensor([0.7, 0.7]), torch.cat(blocks), config.catm)
    assert not torch.equal(expected, follow(torch.tensor([0.7, 0.7]), torch.cat(blocks[:2]), config.catm))
    assert torch.allclose(method.threshold_2, expected) and not torch.equal(expected, torch.full((2,), 0.7))
    assert list(figures.values()) == method.threshold_2.tolist()
    other = METHODS["catm"](config)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(other.threshold_2, method.threshold_2)
    before = other.threshold_2.clone()
    weak = method.loss(networks, batch_of(config, 2)).pseudo.weak_B1HW
    method.finish_step(lambda rows: rows)
    assert torch.equal(method.threshold_2, follow(before, confidence_sums(weak), config.catm))
    assert torch.equal(other.threshold_2, before)  # a copy, not a view
