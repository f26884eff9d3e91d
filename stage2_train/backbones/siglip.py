"""The text tower of SigLIP (arXiv 2303.15343), without its projection head.

SigLIP is pretrained on sentences padded to a fixed length, padding attended to. Here padding is masked, as for every
tower, so that a sentence's features do not depend on its neighbours' lengths.
"""

from typing import Any

from transformers import SiglipTextConfig, SiglipTextModel

from stage2_train.backbones.base import TEXT_SIZES, TextTower, text_sizes
from stage2_train.backbones.pretrained import build_tower
from stage2_train.segmentor_config import TextConfig

SAME = (
    *TEXT_SIZES,
    "hidden_act",
    "layer_norm_eps",
)
"""Fields in which pretrained weights must agree with the config."""


class SiglipText(TextTower):
    """The encoder's last hidden states, normalised."""

    def __init__(self, config: TextConfig) -> None:
        """Build (and load) the tower."""
        super().__init__(config)
        own = SiglipTextConfig(
            **text_sizes(config),
            attention_dropout=config.dropout,
        )
        self.siglip = build_tower(
            SiglipTextModel,
            own,
            config.weights,
            field="text.weights",
            prefix="text.siglip.",
            same=SAME,
            dropped=("head",),
        )

    @property
    def encoder(self) -> Any:
        """See `TextTower.encoder`."""
        return self.siglip
