"""BERT (arXiv 1810.04805) without pooler, LAVT's language tower."""

from torch import Tensor
from transformers import BertConfig, BertModel

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
    "type_vocab_size",
    "hidden_act",
    "layer_norm_eps",
)
"""Fields in which pretrained weights must agree with the config."""


class BertText(TextTower):
    """The encoder's last hidden states."""

    def __init__(self, config: TextConfig) -> None:
        """Build (and load) the tower."""
        super().__init__(config)
        own = BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp,
            max_position_embeddings=config.positions,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
        )
        self.bert = build_tower(
            BertModel,
            own,
            config.weights,
            field="text.weights",
            prefix="text.bert.",
            same=SAME,
            add_pooling_layer=False,
        )

    def forward(self, token_ids_BT: Tensor, token_mask_BT: Tensor) -> Tensor:
        """See `TextTower.forward`."""
        return self.bert(input_ids=token_ids_BT, attention_mask=token_mask_BT.long()).last_hidden_state
