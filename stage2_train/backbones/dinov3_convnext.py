"""ConvNeXt distilled from DINOv3 (arXiv 2508.10104), a convolutional tower.

Axes: B samples, N tokens of a stage (row-major, N = H_j W_j), C channels of the stage.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

from stage2_train.backbones.base import ConvTower, output_norms, through, to_tokens
from stage2_train.backbones.pretrained import build_tower
from stage2_train.segmentor_config import VisionConfig

SAME = ("hidden_sizes", "depths", "hidden_act", "layer_norm_eps")
"""Fields in which pretrained weights must agree with the config."""


class Dinov3ConvNextStages(ConvTower):
    """A DINOv3 ConvNeXt cut at its stages."""

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
        return to_tokens(through(self.halving_layers(0), image_B3HW))  # stage 0: the stem

    def stage_layers(self, stage: int) -> Iterable[nn.Module]:
        """See `ConvTower.stage_layers`."""
        return self.dinov3.model.stages[stage].layers

    def halving_layers(self, stage: int) -> Iterable[nn.Module]:
        """See `ConvTower.halving_layers`."""
        return self.dinov3.model.stages[stage].downsample_layers
