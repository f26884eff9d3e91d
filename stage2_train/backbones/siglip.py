"""The text tower of SigLIP (arXiv 2303.15343), without its projection head.

SigLIP is pretrained on sentences padded to a fixed length, padding attended to. Here padding is masked, as for every
tower, so that a sentence's features do not depend on its neighbours' lengths.
"""

from torch import Tensor
from transformers import SiglipTextConfig, SiglipTextModel

from stage2_train.backbones.base import TextTower
from stage2_train.backbones.pretrained import build_tower
from stage2_train.segmentor_config import TextConfig

SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
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
            vocab_size=config.vocab_size,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp,
            max_position_embeddings=config.positions,
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

    def forward(self, token_ids_BT: Tensor, token_mask_BT: Tensor) -> Tensor:
        """See `TextTower.forward`."""
        return self.siglip(input_ids=token_ids_BT, attention_mask=token_mask_BT.long()).last_hidden_state
