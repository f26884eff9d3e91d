"""Swin V2 (arXiv 2111.09883): cosine attention, and position biases from a small network, so that windows may change.

Axes: B samples, N tokens of a stage (row-major, N = H_j W_j), C channels of the stage.
"""

from torch import Tensor
from transformers import Swinv2Config, Swinv2Model

from stage2_train.backbones.base import VisionTower, harden_window_masks, merge_patches, output_norms
from stage2_train.backbones.pretrained import build_tower
from stage2_train.segmentor_config import NUM_STAGES, VisionConfig

SAME = (
    "patch_size",
    "embed_dim",
    "depths",
    "num_heads",
    "window_size",
    "pretrained_window_sizes",
    "mlp_ratio",
    "qkv_bias",
    "hidden_act",
    "layer_norm_eps",
    "use_absolute_embeddings",
)
"""Fields in which pretrained weights must agree with the config."""

WINDOWS = ("window_size", "pretrained_window_sizes")
"""Those of them that no tensor depends on: `vision.pretrained_windows` says that they are meant to differ."""


class SwinV2Stages(VisionTower):
    """A Swin V2 cut at its stages; a window larger than a stage's map at `image_size` shrinks to the map."""

    def __init__(self, config: VisionConfig) -> None:
        """Build (and load) the tower, without pooler and final norm, and one output norm per stage."""
        super().__init__(config)
        own = Swinv2Config(
            image_size=config.image_size,
            patch_size=config.patch,
            embed_dim=config.embed_dim,
            depths=config.depths,
            num_heads=config.heads,
            window_size=config.window,
            pretrained_window_sizes=config.pretrained_windows or (0,) * NUM_STAGES,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path,
        )
        self.swinv2 = build_tower(
            Swinv2Model,
            own,
            config.weights,
            field="vision.weights",
            prefix="vision.swinv2.",
            same=[name for name in SAME if not (config.pretrained_windows and name in WINDOWS)],
            dropped=("layernorm",),
            add_pooling_layer=False,
        )
        for layer in self.swinv2.encoder.layers:
            harden_window_masks(block.attention for block in layer.blocks)
        self.norms = output_norms(config)

    def embed(self, image_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """See `VisionTower.embed`."""
        embeddings = self.swinv2.embeddings
        tokens_BNC, grid_hw = embeddings.patch_embeddings(image_B3HW)
        return embeddings.dropout(embeddings.norm(tokens_BNC)), grid_hw

    def blocks(self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """See `VisionTower.blocks`."""
        for block in self.swinv2.encoder.layers[stage].blocks:
            tokens_BNC = block(tokens_BNC, grid_hw)[0]
        return tokens_BNC

    def merge(
        self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """See `VisionTower.merge`."""
        return merge_patches(self.swinv2.encoder.layers[stage].downsample, tokens_BNC, grid_hw)
