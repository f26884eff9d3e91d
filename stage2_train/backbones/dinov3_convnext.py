"""ConvNeXt distilled from DINOv3 (arXiv 2508.10104), a convolutional tower.

Axes: B samples, N tokens of a stage (row-major, N = H_j W_j), C channels of the stage.
"""

from torch import Tensor
from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

from stage2_train.backbones.base import VisionTower, output_norms, to_map, to_tokens
from stage2_train.backbones.pretrained import build_tower
from stage2_train.segmentor_config import NUM_STAGES, VisionConfig

SAME = ("hidden_sizes", "depths", "hidden_act", "layer_norm_eps")
"""Fields in which pretrained weights must agree with the config."""


class Dinov3ConvNextStages(VisionTower):
    """A DINOv3 ConvNeXt cut at its stages; the map is halved before a stage, hence after the one before it."""

    def __init__(self, config: VisionConfig) -> None:
        """Build (and load) the tower, without final norm, and one output norm per stage."""
        super().__init__(config)
        own = DINOv3ConvNextConfig(
            image_size=config.image_size,
            hidden_sizes=list(config.dims),
            depths=list(config.depths),
            drop_path_rate=config.drop_path,
        )
        self.dinov3 = build_tower(
            DINOv3ConvNextModel,
            own,
            config.weights,
            field="vision.weights",
            prefix="vision.dinov3.",
            same=SAME,
            dropped=("layer_norm",),
        )
        self.norms = output_norms(config)

    def embed(self, image_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """See `VisionTower.embed`."""
        return self._shrunk(0, image_B3HW)

    def blocks(self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """See `VisionTower.blocks`."""
        map_BCHW = to_map(tokens_BNC, grid_hw)
        for layer in self.dinov3.model.stages[stage].layers:
            map_BCHW = layer(map_BCHW)
        return to_tokens(map_BCHW)[0]

    def merge(
        self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """See `VisionTower.merge`."""
        if stage + 1 == NUM_STAGES:
            return tokens_BNC, grid_hw
        return self._shrunk(stage + 1, to_map(tokens_BNC, grid_hw))

    def _shrunk(self, stage: int, map_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What a stage does before its blocks: the stem at stage 0, halving at the others."""
        for layer in self.dinov3.model.stages[stage].downsample_layers:
            map_BCHW = layer(map_BCHW)
        return to_tokens(map_BCHW)
