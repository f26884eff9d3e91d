"""What a tower offers to the segmentor.

Axes: B samples, N tokens of a stage (row-major, N = H_j W_j), C channels of the stage, T word tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from stage2_train.segmentor_config import NUM_STAGES, TextConfig, VisionConfig


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


class ConvTower(VisionTower):
    """A convolutional tower; its map is halved before a stage, hence after the one before it."""

    @abstractmethod
    def stage_layers(self, stage: int) -> Iterable[nn.Module]:
        """The blocks of a stage."""

    @abstractmethod
    def halving_layers(self, stage: int) -> Iterable[nn.Module]:
        """What halves the map in front of a stage after the first."""

    def blocks(self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """See `VisionTower.blocks`."""
        return to_tokens(through(self.stage_layers(stage), to_map(tokens_BNC, grid_hw)))[0]

    def merge(
        self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """See `VisionTower.merge`."""
        if stage + 1 == NUM_STAGES:
            return tokens_BNC, grid_hw
        return to_tokens(through(self.halving_layers(stage + 1), to_map(tokens_BNC, grid_hw)))


class TextTower(nn.Module, ABC):
    """Token ids to one feature per token."""

    def __init__(self, config: TextConfig) -> None:
        """Keep the config; a subclass builds the tower."""
        super().__init__()
        self.config = config

    @property
    @abstractmethod
    def encoder(self) -> Any:
        """The transformers model; a property, so that its tensors have one name, the family's."""

    def forward(self, token_ids_BT: Tensor, token_mask_BT: Tensor) -> Tensor:
        """Encode; the last hidden states.

        Args:
            token_ids_BT: int64.
            token_mask_BT: bool; False tokens are neither attended to nor meaningful in the output.

        Returns:
            Features [B, T, C], float.
        """
        mask = self.attention_mask(token_mask_BT)
        return self.encoder(input_ids=token_ids_BT, attention_mask=mask).last_hidden_state

    def attention_mask(self, token_mask_BT: Tensor) -> Tensor:
        """The mask as the library wants it, int64 [B, T]; a subclass may spare the library its look at the values."""
        return token_mask_BT.long()


TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
"""What every language tower of the library calls its sizes."""


def text_sizes(config: TextConfig) -> dict[str, int]:
    """`TEXT_SIZES` of a config, for the library's own."""
    values = (
        config.vocab_size,
        config.hidden,
        config.layers,
        config.heads,
        config.mlp,
        config.positions,
    )
    return dict(zip(TEXT_SIZES, values, strict=True))


def merge_patches(
    merging: Any, tokens_BNC: Tensor, grid_hw: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """A Swin layer's patch merging and the grid after it; None, after the last stage, returns its input."""
    if merging is None:
        return tokens_BNC, grid_hw
    return merging(tokens_BNC, grid_hw), ((grid_hw[0] + 1) // 2, (grid_hw[1] + 1) // 2)


def harden_window_masks(attentions: Iterable[nn.Module]) -> None:
    """Let the window masks of a Swin exclude entirely.

    The library, as the original, masks by adding -100. exp(-100) is a denormal float32, and a CPU multiplies with those
    at a fraction of its speed: a training step of the embedded network took 1.3 times as long. With -10,000 the masked
    weights are exactly zero, and nothing else changes beyond the last bit.

    Args:
        attentions: Modules that take (tokens, mask or None, ...) by position.
    """
    for attention in attentions:
        attention.register_forward_pre_hook(_harden)


def _harden(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    tokens, mask, *others = arguments
    return (tokens, None if mask is None else 100.0 * mask, *others)


def through(layers: Iterable[nn.Module], map_BCHW: Tensor) -> Tensor:
    """A map through layers one after the other."""
    for layer in layers:
        map_BCHW = layer(map_BCHW)
    return map_BCHW


def output_norms(config: VisionConfig) -> nn.ModuleList:
    """One LayerNorm per stage."""
    return nn.ModuleList(nn.LayerNorm(dim) for dim in config.dims)


def to_tokens(map_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """A map as tokens [B, N, C], and its grid."""
    return map_BCHW.flatten(2).transpose(1, 2), (map_BCHW.shape[-2], map_BCHW.shape[-1])


def to_map(tokens_BNC: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Tokens as a map [B, C, H, W]."""
    return tokens_BNC.transpose(1, 2).unflatten(2, grid_hw)
