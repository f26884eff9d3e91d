"""ConvNeXt V2 (arXiv 2301.00808), a convolutional tower.

Axes: B samples, N tokens of a stage (row-major, N = H_j W_j), C channels of the stage.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import ConvNextV2Config, ConvNextV2Model

from stage2_train.backbones.base import ConvTower, output_norms, to_tokens
from stage2_train.backbones.pretrained import build_tower
from stage2_train.segmentor_config import VisionConfig

SAME = ("patch_size", "hidden_sizes", "depths", "hidden_act")
"""Fields in which pretrained weights must agree with the config."""


class ConvNextV2Stages(ConvTower):
    """A ConvNeXt V2 cut at its stages."""

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

    def stage_layers(self, stage: int) -> Iterable[nn.Module]:
        """See `ConvTower.stage_layers`."""
        return self.convnextv2.encoder.stages[stage].layers

    def halving_layers(self, stage: int) -> Iterable[nn.Module]:
        """See `ConvTower.halving_layers`."""
        return self.convnextv2.encoder.stages[stage].downsampling_layer
