"""A second branch for co-training: another decoder over the same towers.

CCVC trains two whole networks. Here the towers and the word attention are shared and only the decoder is doubled, so
that method keeps the others' parameter budget and the network that is evaluated is exactly theirs; the second branch
lies in the exported model and is not used. The branches start from different random weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from stage2_train.decoder import TopDownDecoder


@dataclass(frozen=True, kw_only=True)
class BranchMaps:
    """What two decoders make of the same images."""

    first_logit_B2HW: Tensor
    """Logits of the branch that is kept, at the size of the input."""
    second_logit_B2HW: Tensor
    """Logits of the other."""
    first_BCHW: Tensor
    """Hidden map of the first branch, at the resolution of stage 1."""
    second_BCHW: Tensor
    """Hidden map of the second, mapped linearly to be comparable."""


class SecondBranch(nn.Module):
    """A decoder, and a linear map of its hidden channels to those of the first."""

    def __init__(self, dims: Sequence[int], width: int, norm: str, upscale: int) -> None:
        """Arguments as `TopDownDecoder`."""
        super().__init__()
        self.decoder = TopDownDecoder(dims, width, norm, upscale)
        self.match = nn.Conv2d(width, width, 1)
