"""A second branch for co-training: another decoder over the same towers.

CCVC trains two whole networks. Here the towers and the word attention are shared and only the decoder is doubled, so
that method keeps the others' parameter budget and the network that is evaluated is exactly theirs; the second branch
lies in the exported model and is not used. The branches start from different random weights.

As in CCVC's released code the second branch maps its channels (1 x 1 convolution, norm, ReLU) before the last two
convolutions, which read the mapped ones. A linear map beside that path would satisfy a discrepancy loss by itself: it
learns to negate, and both decoders stay alike. Of two maps that are nowhere negative the cosine is at least 0.

Left out: the released code's dropout of whole mapped channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from stage2_train.decoder import TopDownDecoder, norm_layer


@dataclass(frozen=True, kw_only=True)
class BranchMaps:
    """What two decoders make of the same images."""

    first_logit_B2HW: Tensor
    """Logits of the branch that is kept, at the size of the input."""
    second_logit_B2HW: Tensor
    """Logits of the other."""
    first_BCHW: Tensor
    """Map of the first branch before its last two convolutions, at the resolution of stage 2."""
    second_BCHW: Tensor
    """That of the second, mapped."""


class SecondBranch(nn.Module):
    """A decoder, and the map of its channels that its last two convolutions read."""

    def __init__(self, dims: Sequence[int], width: int, norm: str, upscale: int) -> None:
        """Arguments as `TopDownDecoder`."""
        super().__init__()
        self.decoder = TopDownDecoder(dims, width, norm, upscale)
        self.match = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False), norm_layer(norm, width), nn.ReLU(inplace=True)
        )
