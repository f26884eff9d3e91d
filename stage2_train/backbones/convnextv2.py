"""ConvNeXt V2 (arXiv 2301.00808), a convolutional tower.

Axes: B samples, N tokens of a stage (row-major, N = H_j W_j), C channels of the stage.
"""

from torch import Tensor
from transformers import ConvNextV2Config, ConvNextV2Model

from stage2_train.backbones.base import VisionTower, output_norms, to_map, to_tokens
from stage2_train.backbones.pretrained import build_tower
from stage2_train.segmentor_config import NUM_STAGES, VisionConfig

SAME = ("patch_size", "hidden_sizes", "depths", "hidden_act")
"""Fields in which pretrained weights must agree with the config."""


class ConvNextV2Stages(VisionTower):
    """A ConvNeXt V2 cut at its stages; the map is halved before a stage, hence after the one before it."""

    def __init__(self, config: VisionConfig) -> None:
        """Build (and load) the tower, without final norm, and one output norm per stage."""
        super().__init__(config)
        own = ConvNextV2Config(
            image_size=config.image_size,
            patch_size=config.patch,
            hidden_sizes=list(config.dims),
            depths=list(config.depths),
            drop_path_rate=config.drop_path,
        )
        self.convnextv2 = build_tower(
            ConvNextV2Model,
            own,
            config.weights,
            field="vision.weights",
            prefix="vision.convnextv2.",
            same=SAME,
            dropped=("layernorm",),
        )
        self.norms = output_norms(config)

    def embed(self, image_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """See `VisionTower.embed`."""
        return to_tokens(self.convnextv2.embeddings(image_B3HW))

    def blocks(self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """See `VisionTower.blocks`."""
        map_BCHW = to_map(tokens_BNC, grid_hw)
        for layer in self.convnextv2.encoder.stages[stage].layers:
            map_BCHW = layer(map_BCHW)
        return to_tokens(map_BCHW)[0]

    def merge(
        self, stage: int, tokens_BNC: Tensor, grid_hw: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """See `VisionTower.merge`."""
        if stage + 1 == NUM_STAGES:
            return tokens_BNC, grid_hw
        map_BCHW = to_map(tokens_BNC, grid_hw)
        for layer in self.convnextv2.encoder.stages[stage + 1].downsampling_layer:
            map_BCHW = layer(map_BCHW)
        return to_tokens(map_BCHW)
