"""ModernBERT (arXiv 2412.13663): rotary positions and gated MLPs."""

from torch import Tensor
from transformers import ModernBertConfig, ModernBertModel

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
            vocab_size=config.vocab_size,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp,
            max_position_embeddings=config.positions,
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

    def forward(self, token_ids_BT: Tensor, token_mask_BT: Tensor) -> Tensor:
        """See `TextTower.forward`."""
        return self.modernbert(input_ids=token_ids_BT, attention_mask=token_mask_BT.long()).last_hidden_state
