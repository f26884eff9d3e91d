"""BERT (arXiv 1810.04805) without pooler, LAVT's language tower."""

from typing import Any

from torch import Tensor
from transformers import BertConfig, BertModel

from stage2_train.backbones.base import TEXT_SIZES, TextTower, text_sizes
from stage2_train.backbones.pretrained import build_tower
from stage2_train.segmentor_config import TextConfig

SAME = (
    *TEXT_SIZES,
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
            **text_sizes(config),
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

    def attention_mask(self, token_mask_BT: Tensor) -> Tensor:
        """See `TextTower.attention_mask`; bool [B, 1, 1, T] on a GPU.

        Of [B, T] the library asks whether every token counts, which waits for all that the device has still to do.
        """
        if token_mask_BT.device.type == "cpu":
            return super().attention_mask(token_mask_BT)
        return token_mask_BT[:, None, None, :]

    @property
    def encoder(self) -> Any:
        """See `TextTower.encoder`."""
        return self.bert
