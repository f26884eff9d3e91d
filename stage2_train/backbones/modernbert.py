"""ModernBERT (arXiv 2412.13663): rotary positions and gated MLPs."""

from typing import Any

from transformers import ModernBertConfig, ModernBertModel

from stage2_train.backbones.base import TEXT_SIZES, TextTower, text_sizes
from stage2_train.backbones.pretrained import build_tower
from stage2_train.segmentor_config import TextConfig

SAME = (
    *TEXT_SIZES,
    "hidden_activation",
    "norm_eps",
    "norm_bias",
    "attention_bias",
    "mlp_bias",
    "local_attention",
    "layer_types",
    "rope_parameters",
)
"""Fields in which pretrained weights must agree with the config."""


class ModernBertText(TextTower):
    """The encoder's last hidden states, normalised."""

    def __init__(self, config: TextConfig) -> None:
        """Build (and load) the tower."""
        super().__init__(config)
        own = ModernBertConfig(
            **text_sizes(config),
            attention_dropout=config.dropout,
            embedding_dropout=config.dropout,
            mlp_dropout=config.dropout,
            pad_token_id=None,  # padding is masked, whatever its id
        )
        self.modernbert = build_tower(
            ModernBertModel,
            own,
            config.weights,
            field="text.weights",
            prefix="text.modernbert.",
            same=SAME,
        )

    @property
    def encoder(self) -> Any:
        """See `TextTower.encoder`."""
        return self.modernbert
