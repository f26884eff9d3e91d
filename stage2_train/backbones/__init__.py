"""Vision and language towers, one file a family; `VisionConfig.kind` and `TextConfig.kind` choose.

A new family is one file and one line here, and its name in `segmentor_config`: see README.md.
"""

from stage2_train.backbones.base import TextTower, VisionTower
from stage2_train.backbones.bert import BertText
from stage2_train.backbones.convnextv2 import ConvNextV2Stages
from stage2_train.backbones.dinov3_convnext import Dinov3ConvNextStages
from stage2_train.backbones.modernbert import ModernBertText
from stage2_train.backbones.siglip import SiglipText
from stage2_train.backbones.swin import SwinStages
from stage2_train.backbones.swinv2 import SwinV2Stages
from stage2_train.segmentor_config import TextConfig, TextKind, VisionConfig, VisionKind

VISION_TOWERS: dict[VisionKind, type[VisionTower]] = {
    "swin": SwinStages,
    "swinv2": SwinV2Stages,
    "convnextv2": ConvNextV2Stages,
    "dinov3-convnext": Dinov3ConvNextStages,
}
"""Vision tower by `VisionConfig.kind`."""

TEXT_TOWERS: dict[TextKind, type[TextTower]] = {
    "bert": BertText,
    "siglip": SiglipText,
    "modernbert": ModernBertText,
}
"""Language tower by `TextConfig.kind`."""


def build_vision(config: VisionConfig) -> VisionTower:
    """The vision tower of a config, pretrained if it names weights.

    Raises:
        DataError: Weights that are missing or of another network.
    """
    return VISION_TOWERS[config.kind](config)


def build_text(config: TextConfig) -> TextTower:
    """The language tower of a config, pretrained if it names weights.

    Raises:
        DataError: Weights that are missing or of another network.
    """
    return TEXT_TOWERS[config.kind](config)
