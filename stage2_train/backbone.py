"""Vision tower: the blocks of a Hugging Face Swin, stage by stage, so that language can enter between stages.

Axes: B samples, N tokens of a stage (row-major, N = H_j W_j), C channels of the stage.

Windows always partition the map, padded up where it is not a multiple of the window (as in LAVT); the library's own
shrinking of windows on small maps is not used, because it leaves the position bias at its old size.
"""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from shared.errors import DataError
from stage2_train.segmentor_config import VisionConfig

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Channel statistics of images in [0, 1] that the towers are trained with."""


def normalise_image(image_BHW3: Tensor) -> Tensor:
    """uint8 RGB [B, H, W, 3] to normalised float32 [B, 3, H, W]."""
    image_B3HW = image_BHW3.permute(0, 3, 1, 2).float() / 255.0
    mean_311, std_311 = (image_B3HW.new_tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return (image_B3HW - mean_311) / std_311


def build_swin(config: VisionConfig) -> SwinModel:
    """Swin without pooler and final norm (each stage has its own norm in `SwinStages`).

    Raises:
        DataError: `config.weights` is no folder, or holds a Swin of another shape.
    """
    if config.weights is None:
        swin = SwinModel(_swin_config(config), add_pooling_layer=False)
    else:
        if not Path(config.weights).is_dir():
            raise DataError(f"vision.weights: {config.weights} is not a folder")
        swin = SwinModel.from_pretrained(config.weights, add_pooling_layer=False, local_files_only=True)
        found = swin.config
        shape = (
            found.embed_dim,
            tuple(found.depths),
            tuple(found.num_heads),
            found.window_size,
            found.patch_size,
        )
        wanted = (config.embed_dim, config.depths, config.heads, config.window, config.patch)
        if shape != wanted:
            raise DataError(
                f"vision.weights: {config.weights} has (dim, depths, heads, window, patch) {shape}, not {wanted}"
            )
    swin.layernorm = nn.Identity()
    return swin


def _swin_config(config: VisionConfig) -> SwinConfig:
    return SwinConfig(
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


class SwinStages(nn.Module):
    """A Swin cut at its stages."""

    def __init__(self, config: VisionConfig) -> None:
        """Build (and load) the tower and one output norm per stage."""
        super().__init__()
        self.config = config
        self.swin = build_swin(config)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in config.dims)

    def embed(self, image_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens [B, N, C_1] of normalised images, and the grid (H_1, W_1)."""
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
        """V_j [B, N, C]: the blocks of one stage (counted from 0), before merging."""
        for block in self.swin.encoder.layers[stage].blocks:
            tokens_BNC, _ = block(tokens_BNC, grid_hw, always_partition=True)
        return tokens_BNC

    def merge(
        self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Halve the map after a stage and double its channels; the last stage returns its input."""
        merging = self.swin.encoder.layers[stage].downsample
        if merging is None:
            return tokens_BNC, grid_hw
        return merging(tokens_BNC, grid_hw), ((grid_hw[0] + 1) // 2, (grid_hw[1] + 1) // 2)
