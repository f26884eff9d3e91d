from pathlib import Path
from types import SimpleNamespace

import torch

from stage2_train.config import SampleLossConfig
from stage2_train.losses import IGNORE
from stage2_train.methods.base import Method
from tests.stage2_train.miniature import mini_config


def test_parts_of_the_loss_have_their_weights(mini_root: Path) -> None:
    loss = SampleLossConfig(lambda_labelled=3.0, lambda_unlabelled=0.5, rampup_steps=0)
    method = Method(mini_config(mini_root, loss=loss))
    pseudo = SimpleNamespace(label_BHW=torch.tensor([[[0, 1, 1, IGNORE]]]))
    output = method.combine(
        SimpleNamespace(step=0),  # type: ignore[arg-type]
        (torch.tensor(2.0), {}),
        (torch.tensor(8.0), {"ce": torch.tensor(1.0)}),
        pseudo,  # type: ignore[arg-type]
    )
    assert output.loss == 3.0 * 2.0 + 0.5 * 8.0
    assert (output.metrics["labelled_loss"], output.metrics["unlabelled_loss"]) == (2.0, 8.0)
    assert (output.metrics["coverage"], output.metrics["foreground"]) == (0.75, 0.5)
    alone = method.labelled_output(torch.tensor(2.0), {})
    assert alone.loss == 6.0 and alone.metrics["labelled_loss"] == 2.0
