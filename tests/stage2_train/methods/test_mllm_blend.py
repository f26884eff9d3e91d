import dataclasses
from pathlib import Path

import pytest
import torch

from stage2_train.config import BlendConfig
from stage2_train.losses import IGNORE
from stage2_train.methods import METHODS
from stage2_train.methods.mllm_blend import blend_label, soft_cross_entropy
from stage2_train.networks import Networks
from tests.stage2_train.methods.scripted import Scripted
from tests.stage2_train.miniature import batch_of, plain_config

PRIOR = torch.tensor([[[[0.9, 0.9, 0.1, 0.1]]]])
WEAK = torch.tensor([[[[0.9, 0.4, 0.1, 0.6]]]])
BLEND = 0.5 * PRIOR + 0.5 * WEAK  # .90 .65 .10 .35


@pytest.mark.parametrize(
    ("config", "label"),
    [
        (BlendConfig(target="threshold", threshold=0.7), [1, IGNORE, 0, IGNORE]),
        (BlendConfig(target="threshold", threshold=0.6), [1, 1, 0, 0]),
        (BlendConfig(target="soft"), [1, 1, 0, 0]),
        (BlendConfig(target="agree", agreement=0.7), [1, IGNORE, 0, IGNORE]),  # W = 1 - 1.0 / 4 = 0.75
        (BlendConfig(target="agree", agreement=0.8), [IGNORE] * 4),
    ],
)
def test_blend_label(config: BlendConfig, label: list[int]) -> None:
    assert blend_label(PRIOR, WEAK, BLEND, config).tolist() == [[label]]


def test_soft_cross_entropy_by_hand() -> None:
    logit = torch.log(torch.tensor([0.25, 0.75])).reshape(1, 2, 1, 1)
    loss, _ = soft_cross_entropy(logit, torch.full((1, 1, 1, 1), 0.5))
    assert loss == pytest.approx(
        -(0.5 * torch.log(torch.tensor(0.75)) + 0.5 * torch.log(torch.tensor(0.25))).item()
    )


def test_soft_cross_entropy_is_least_at_its_target() -> None:
    target = torch.full((1, 1, 1, 1), 0.3)
    at = [
        float(soft_cross_entropy(torch.log(torch.tensor([1 - p, p])).reshape(1, 2, 1, 1), target)[0])
        for p in (0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    assert min(at) == at[2]


def test_the_prior_has_its_share_where_there_is_one(mini_root: Path) -> None:
    config = plain_config(mini_root, "mllm_blend", blend=BlendConfig(prior_share=0.25))
    part = batch_of(config).unlabelled
    assert part is not None
    has_B = torch.tensor([True, False, True, True])
    part = dataclasses.replace(part, has_prior_B=has_B, prior_B1HW=torch.full((4, 1, 32, 32), 0.8))
    pseudo = METHODS["mllm_blend"](config).pseudo(Networks(Scripted(torch.full((4, 32, 32), 0.4))), part)
    assert pseudo.target_B1HW[:, 0, 0, 0].tolist() == pytest.approx([0.5, 0.4, 0.5, 0.5])
