from pathlib import Path

import pytest
import torch

from stage2_train.config import FixmatchConfig
from stage2_train.losses import IGNORE
from stage2_train.methods import METHODS
from stage2_train.networks import Networks
from tests.stage2_train.methods.scripted import Scripted
from tests.stage2_train.miniature import batch_of, plain_config


@pytest.mark.parametrize(
    ("threshold", "label"), [(0.7, [1, IGNORE, IGNORE, 0]), (0.55, [1, 1, 0, 0]), (0.95, [IGNORE] * 4)]
)
def test_confident_pixels_of_the_weak_view_are_taught(
    mini_root: Path, threshold: float, label: list[int]
) -> None:
    config = plain_config(
        mini_root,
        "fixmatch",
        batch_labelled=1,
        batch_unlabelled=1,
        fixmatch=FixmatchConfig(threshold=threshold),
    )
    weak = torch.tensor([0.9, 0.6, 0.4, 0.1]).repeat(1, 32, 8)
    networks = Networks(Scripted(weak, torch.full((2, 32, 32), 0.5)))
    output = METHODS["fixmatch"](config).loss(networks, batch_of(config))
    assert output.pseudo is not None
    assert output.pseudo.label_BHW[0, 0, :4].tolist() == label
    assert output.metrics["coverage"] == pytest.approx(sum(one != IGNORE for one in label) / 4)
