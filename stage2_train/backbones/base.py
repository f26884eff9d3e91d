"""What a tower offers to the segmentor.

Axes: B samples, N tokens of a stage (row-major, N = H_j W_j), C channels of the stage, T word tokens.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from stage2_train.segmentor_config import TextConfig, VisionConfig


class VisionTower(nn.Module, ABC):
    """A pyramid of four stages, cut so that language can enter between them."""

    norms: nn.ModuleList
    """Norm of each stage's output, in front of the decoder."""

    def __init__(self, config: VisionConfig) -> None:
        """Keep the config; a subclass builds the tower and then `norms`."""
        super().__init__()
        self.config = config

    @abstractmethod
    def embed(self, image_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens [B, N, C_1] of normalised images, and the grid (H_1, W_1)."""

    @abstractmethod
    def blocks(self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """V_j [B, N, C]: the blocks of one stage (counted from 0), before the map is halved."""

    @abstractmethod
    def merge(
        self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Halve the map after a stage and double its channels; the last stage returns its input."""


class TextTower(nn.Module, ABC):
    """Token ids to one feature per token."""

    def __init__(self, config: TextConfig) -> None:
        """Keep the config; a subclass builds the tower."""
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, token_ids_BT: Tensor, token_mask_BT: Tensor) -> Tensor:
        """Encode.

        Args:
            token_ids_BT: int64.
            token_mask_BT: bool; False tokens are neither attended to nor meaningful in the output.

        Returns:
            Features [B, T, C], float.
        """


def output_norms(config: VisionConfig) -> nn.ModuleList:
    """One LayerNorm per stage."""
    return nn.ModuleList(nn.LayerNorm(dim) for dim in config.dims)


def to_tokens(map_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """A map as tokens [B, N, C], and its grid."""
    return map_BCHW.flatten(2).transpose(1, 2), (map_BCHW.shape[-2], map_BCHW.shape[-1])


def to_map(tokens_BNC: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Tokens as a map [B, C, H, W]."""
    return tokens_BNC.transpose(1, 2).unflatten(2, grid_hw)
