"""Attention within windows: one result and one gradient, whichever way it is computed."""

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stage2_train.backbones import swin
from stage2_train.backbones.swin import window_attention
from stage2_train.segmentor_config import VisionConfig

SCALING = 0.35


def inputs(seed: int) -> list[Tensor]:
    """Query, key, value [4 windows, 2 heads, 9 positions, 8 channels], and a bias that excludes some keys."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(4, 2, 9, 8, generator=generator) for _ in range(3)]
    bias = torch.randn(1, 2, 9, 9, generator=generator)
    mask = torch.where(torch.rand(4, 1, 9, 9, generator=generator) < 0.3, -10_000.0, 0.0)
    return [one.requires_grad_() for one in (*tensors, bias + mask * (1 - torch.eye(9)))]


def results(function: object, tensors: list[Tensor]) -> list[Tensor]:
    """Output, and gradients of a weighted sum of it."""
    output, _ = function(nn.Identity(), *tensors, scaling=SCALING)  # type: ignore[operator]
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return [output, *torch.autograd.grad((output * weights).sum(), tensors)]


@pytest.mark.parametrize("seed", [0, 1])
def test_written_out_attention_is_the_librarys(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("the library's path was taken")

    wanted = results(sdpa_attention_forward, inputs(seed))
    monkeypatch.setattr(swin, "sdpa_attention_forward", refused)
    for own, theirs in zip(results(window_attention, inputs(seed)), wanted, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)


def test_without_a_gradient_the_fused_kernel_is_taken() -> None:
    tensors = inputs(0)
    with torch.no_grad():
        own, theirs = (
            function(nn.Identity(), *tensors, scaling=SCALING)[0]
            for function in (window_attention, sdpa_attention_forward)
        )
    assert torch.equal(own, theirs)


def test_a_swin_attends_so() -> None:
    tower = swin.SwinStages(
        VisionConfig(image_size=32, embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=2)
    )
    blocks = [block for layer in tower.swin.encoder.layers for block in layer.blocks]
    assert {block.attention.config._attn_implementation for block in blocks} == {swin.ATTENTION}
