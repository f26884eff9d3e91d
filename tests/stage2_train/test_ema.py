from pathlib import Path

import pytest
import torch
from torch import nn

from stage2_train.backbones.images import normalise_image
from stage2_train.ema import Ema
from stage2_train.segmentor import build_segmentor
from tests.stage2_train.miniature import segmentor_config


def test_ema_moves_by_its_warmed_up_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema = Ema(model, 0.9)
    nn.init.constant_(model.weight, 1.0)
    ema.update(model)  # decay min(0.9, 1/10)
    assert ema.module.weight.item() == pytest.approx(0.9)
    ema.update(model)  # decay min(0.9, 2/11)
    assert ema.module.weight.item() == pytest.approx(1 - 0.1 * 2 / 11)
    assert not ema.module.weight.requires_grad and not ema.module.training


def test_the_warm_up_ends_at_the_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema = Ema(model, 0.15)
    nn.init.constant_(model.weight, 1.0)
    for kept in (0.1, 0.1 * 0.15, 0.1 * 0.15**2):  # 2/11 and 3/12 are more than 0.15
        ema.update(model)
        assert ema.module.weight.item() == pytest.approx(1 - kept)


def test_the_average_is_a_copy_until_the_burn_in_ends() -> None:
    """Updates 0 and 1 copy; update 2 is the first average, with decay min(0.9, 1/10)."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = Ema(model, 0.9, burn_in=2)
    seen = []
    for value in (1.0, 2.0, 3.0, 4.0):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
        seen.append(ema.module.weight.item())
    first = 0.1 * 2.0 + 0.9 * 3.0
    assert seen == pytest.approx([1.0, 2.0, first, 2 / 11 * first + 9 / 11 * 4.0])


def test_without_a_warm_up_the_decay_is_constant_from_the_burn_in_on() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema = Ema(model, 0.9, burn_in=1, warmup=False)
    seen = []
    for _ in range(3):
        ema.update(model)
        seen.append(ema.module.weight.item())
        nn.init.constant_(model.weight, 1.0)
    assert seen == pytest.approx([0.0, 0.1, 0.19])


def test_running_statistics_lag_as_the_weights_do(mini_root: Path) -> None:
    """Both averages of decay 1/10 hold nine tenths of the new values; the count of batches is the network's own."""
    torch.manual_seed(0)
    model = build_segmentor(segmentor_config(mini_root / "tokenizer", sesm=False, norm="batch")).train()
    ema = Ema(model, 0.9)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    model(normalise_image(images), torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool))
    ema.update(model)
    now, averaged = dict(model.named_buffers()), dict(ema.module.named_buffers())
    statistics = [name for name in now if name.endswith(("running_mean", "running_var"))]
    assert statistics and any(not torch.equal(before[name], now[name]) for name in statistics)
    for name in statistics:
        assert torch.allclose(averaged[name], 0.1 * before[name] + 0.9 * now[name], atol=1e-6), name
    counts = [name for name in now if name.endswith("num_batches_tracked")]
    assert counts and all(averaged[name] == now[name] == 1 for name in counts)
