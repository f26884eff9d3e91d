"""A second branch for co-training: another whole network beside the first.

As in CCVC each branch has towers of its own, which start from the same pretrained weights; what starts at random
differs. The network that is evaluated is exactly that of the other methods; the second lies in the exported model and
is not used.

As in CCVC's released code the second branch maps its channels (1 x 1 convolution, norm, ReLU) before the last two
convolutions, which read the mapped ones. A linear map beside that path would satisfy a discrepancy loss by itself: it
learns to negate, and both decoders stay alike. Of two maps that are nowhere negative the cosine is at least 0.

Left out: the released code's dropout of whole mapped channels.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from stage2_train.decoder import norm_layer


@dataclass(frozen=True, kw_only=True)
class BranchMaps:
    """What two branches make of the same images."""

    first_logit_B2HW: Tensor
    """Logits of the branch that is kept, at the size of the input."""
    second_logit_B2HW: Tensor
    """Logits of the other."""
    first_BCHW: Tensor
    """Map of the first branch before its last two convolutions, at the resolution of stage 2."""
    second_BCHW: Tensor
    """That of the second, mapped."""


def channel_map(width: int, norm: str) -> nn.Sequential:
    """The second branch's map of `width` channels, nowhere negative."""
    return nn.Sequential(
        nn.Conv2d(width, width, 1, bias=False), norm_layer(norm, width), nn.ReLU(inplace=True)
    )
