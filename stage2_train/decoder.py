"""Top-down convolutional decoder: the last stage's map is upsampled and joined with each earlier one.

Axes: B samples, C_j channels and H_j x W_j positions of stage j (stride 4, 8, 16, 32).
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CLASSES = 2
"""Class 0 is background, class 1 the object referred to."""


def norm_layer(kind: str, width: int) -> nn.Module:
    """`batch` norm, or a group norm of 8 groups."""
    return nn.BatchNorm2d(width) if kind == "batch" else nn.GroupNorm(8, width)


def _conv_pair(channels_in: int, width: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, width, 3, padding=1, bias=False),
        norm_layer(norm, width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        norm_layer(norm, width),
        nn.ReLU(inplace=True),
    )


class TopDownDecoder(nn.Module):
    """Stage maps to two class logits at the resolution of stage 1, or `upscale` times finer.

    A finer map is read off the same features by sub-pixel convolution (Shi et al. 2016, arXiv 1609.05158).
    """

    def __init__(self, dims: Sequence[int], width: int, norm: str, upscale: int = 1) -> None:
        """Build for stage channels `dims` (C_1..C_4)."""
        super().__init__()
        self.upscale = upscale
        first, second, third, fourth = dims
        self.joins = nn.ModuleList(
            (
                _conv_pair(fourth + third, width, norm),
                _conv_pair(width + second, width, norm),
                _conv_pair(width + first, width, norm),
            )
        )
        self.classify = nn.Conv2d(width, NUM_CLASSES * upscale**2, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode.

        Args:
            maps: Four maps [B, C_j, H_j, W_j], stage 1 first.

        Returns:
            Logits [B, 2, u H_1, u W_1], u = `upscale`.
        """
        return self.logit(self.hidden(maps))

    def logit(self, hidden_BCHW: Tensor) -> Tensor:
        """Logits of what `hidden` gave."""
        return F.pixel_shuffle(self.classify(hidden_BCHW), self.upscale)

    def hidden(self, maps: Sequence[Tensor]) -> Tensor:
        """The map [B, width, H_1, W_1] that logits are read off; arguments as `forward`."""
        return self.finish(self.deep(maps), maps)

    def deep(self, maps: Sequence[Tensor]) -> Tensor:
        """The map [B, width, H_2, W_2] of stages 2 to 4, nowhere negative; arguments as `forward`."""
        x_BCHW = maps[-1]
        for join, skip_BCHW in zip(self.joins[:-1], reversed(maps[1:-1]), strict=True):
            x_BCHW = _joined(join, x_BCHW, skip_BCHW)
        return x_BCHW

    def finish(self, deep_BCHW: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """`hidden`, given what `deep` gave: joined with stage 1 by the last two convolutions."""
        return _joined(self.joins[-1], deep_BCHW, maps[0])


def _joined(join: nn.Module, x_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
    if x_BCHW.shape[-2:] != skip_BCHW.shape[-2:]:
        x_BCHW = F.interpolate(x_BCHW, size=skip_BCHW.shape[-2:], mode="bilinear", align_corners=True)
    return cast(Tensor, join(torch.cat((x_BCHW, skip_BCHW), dim=1)))
