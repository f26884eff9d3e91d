"""Swin (arXiv 2103.14030), LAVT's vision tower.

Axes: B samples, N tokens of a stage (row-major, N = H_j W_j), C channels of the stage.

Windows always partition the map, padded up where it is not a multiple of the window (as in LAVT); the library's own
shrinking of windows on small maps is not used, because it leaves the position bias at its old size.

Stochastic depth drops the MLP of a block as well as its attention, as in the original; the library's blocks drop the
attention alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, SwinConfig, SwinModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.swin.modeling_swin import SwinMLP

from stage2_train.backbones.base import VisionTower, harden_window_masks, merge_patches, output_norms
from stage2_train.backbones.pretrained import build_tower
from stage2_train.segmentor_config import VisionConfig

SAME = (
    "patch_size",
    "embed_dim",
    "depths",
    "num_heads",
    "window_size",
    "mlp_ratio",
    "qkv_bias",
    "hidden_act",
    "layer_norm_eps",
    "use_absolute_embeddings",
)
"""Fields in which pretrained weights must agree with the config."""


ATTENTION = "window"
"""Name under which the library finds `window_attention`."""


def window_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within windows, under the library's convention.

    The position bias is learnt, and no fused kernel of a CPU has a gradient for it: torch falls back to a path that
    also looks for rows without any key. There are none in a window, so that case is written out here.

    Args:
        module: The attention module.
        query: [windows, heads, positions, channels].
        key: The same.
        value: The same.
        attention_mask: Position bias and mask, added to the scores [windows, heads, positions, positions].
        scaling: Factor on the scores.
        dropout: Probability with which a weight is dropped.
        **options: Passed on to the fused kernels.

    Returns:
        [windows, positions, heads, channels], and None for the weights.
    """
    learning = torch.is_grad_enabled() and attention_mask.requires_grad
    if query.device.type != "cpu" or not learning:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
    weight = (torch.matmul(scaling * query, key.transpose(2, 3)) + attention_mask).softmax(dim=-1)
    mixed = torch.matmul(F.dropout(weight, dropout, training=dropout > 0).to(value.dtype), value)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, window_attention)


class DroppedMlp(SwinMLP):
    """A block's MLP under the block's stochastic depth."""

    def __init__(self, config: SwinConfig, dim: int, mlp: SwinMLP, drop_path: nn.Module) -> None:
        """Take over the layers of `mlp`."""
        super().__init__(config, dim)
        self.fc1, self.fc2, self.drop_path = mlp.fc1, mlp.fc2, drop_path

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """The MLP's output, or zero for samples that skip it."""
        return self.drop_path(super().forward(tokens_BNC))


class SwinStages(VisionTower):
    """A Swin cut at its stages."""

    def __init__(self, config: VisionConfig) -> None:
        """Build (and load) the tower, without pooler and final norm, and one output norm per stage."""
        super().__init__(config)
        own = SwinConfig(
            image_size=config.image_size,
            patch_size=config.patch,
            embed_dim=config.embed_dim,
            depths=config.depths,
            num_heads=config.heads,
            window_size=config.window,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path,
            use_absolute_embeddings=config.absolute_positions,
        )
        self.swin = build_tower(
            SwinModel,
            own,
            config.weights,
            field="vision.weights",
            prefix="vision.swin.",
            same=SAME,
            dropped=("layernorm",),
            add_pooling_layer=False,
        )
        for layer, dim in zip(self.swin.encoder.layers, config.dims, strict=True):
            for block in layer.blocks:
                block.attention.config._attn_implementation = ATTENTION
                if not isinstance(block.drop_path, nn.Identity):
                    block.mlp = DroppedMlp(own, dim, block.mlp, block.drop_path)
            harden_window_masks(block.attention for block in layer.blocks)
        self.norms = output_norms(config)

    def embed(self, image_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """See `VisionTower.embed`."""
        embeddings = self.swin.embeddings
        tokens_BNC, grid_hw = embeddings.patch_embeddings(image_B3HW)
        tokens_BNC = embeddings.norm(tokens_BNC)
        if embeddings.position_embeddings is not None:
            position_1NC = embeddings.position_embeddings
            side = self.config.image_size // self.config.patch
            if grid_hw != (side, side):
                position_1CHW = position_1NC.transpose(1, 2).unflatten(2, (side, side))
                position_1CHW = F.interpolate(position_1CHW, size=grid_hw, mode="bicubic")
                position_1NC = position_1CHW.flatten(2).transpose(1, 2)
            tokens_BNC = tokens_BNC + position_1NC
        return embeddings.dropout(tokens_BNC), grid_hw

    def blocks(self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """See `VisionTower.blocks`."""
        for block in self.swin.encoder.layers[stage].blocks:
            tokens_BNC, _ = block(tokens_BNC, grid_hw, always_partition=True)
        return tokens_BNC

    def merge(
        self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """See `VisionTower.merge`."""
        return merge_patches(self.swin.encoder.layers[stage].downsample, tokens_BNC, grid_hw)
