"""Language tower: BERT without pooler, and the WordPiece tokenizer in front of it.

Axes: B sentences, T tokens ([CLS] and [SEP] included, at most `TextConfig.max_tokens`), C channels.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer

from shared.errors import DataError
from stage2_train.segmentor_config import EMBEDDED, EMBEDDED_FOLDER, SegmentorConfig, TextConfig

TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""Files that make up a tokenizer; the first or the second must be there."""


def tokenizer_folder(config: TextConfig) -> Path:
    """Where a config's tokenizer lies.

    Raises:
        DataError: There is no vocabulary.
    """
    folder = EMBEDDED_FOLDER if config.tokenizer == EMBEDDED else Path(config.tokenizer)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES[:2]):
        raise DataError(
            f"{folder}: no vocab.txt or tokenizer.json; set text.tokenizer to a BERT tokenizer folder"
        )
    return folder


class Tokenizer:
    """Sentences to token ids, padded to the longest of the batch."""

    def __init__(self, config: SegmentorConfig) -> None:
        """Load the vocabulary of `config.text.tokenizer`.

        Raises:
            DataError: The folder holds no vocabulary, or one larger than the word embedding.
        """
        text = config.text
        folder = tokenizer_folder(text)
        self._tokenizer = BertTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.max_tokens = text.max_tokens
        if len(self._tokenizer) > text.vocab_size:
            raise DataError(
                f"{folder}: {len(self._tokenizer)} tokens, but text.vocab_size is {text.vocab_size}"
            )

    def __call__(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenise.

        Args:
            sentences: B texts; letter case is ignored.

        Returns:
            ids_BT: int64, padded with the [PAD] id.
            mask_BT: bool, True at tokens of the sentence.
        """
        batch = self._tokenizer(
            list(sentences),
            padding="longest",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        return batch["input_ids"], batch["attention_mask"].bool()


def build_bert(config: TextConfig) -> BertModel:
    """BERT without pooler, random or from a local folder.

    Raises:
        DataError: `config.weights` is no folder.
    """
    if config.weights is not None:
        if not Path(config.weights).is_dir():
            raise DataError(f"text.weights: {config.weights} is not a folder")
        return BertModel.from_pretrained(config.weights, add_pooling_layer=False, local_files_only=True)
    bert_config = BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
        max_position_embeddings=config.positions,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
    )
    return BertModel(bert_config, add_pooling_layer=False)


class TextEncoder(nn.Module):
    """Token ids to one feature per token."""

    def __init__(self, config: TextConfig) -> None:
        """Build (and load) the tower."""
        super().__init__()
        self.bert = build_bert(config)

    def forward(self, token_ids_BT: Tensor, token_mask_BT: Tensor) -> Tensor:
        """Encode.

        Args:
            token_ids_BT: int64.
            token_mask_BT: bool; False tokens are neither attended to nor meaningful in the output.

        Returns:
            Features [B, T, C], float.
        """
        return self.bert(input_ids=token_ids_BT, attention_mask=token_mask_BT.long()).last_hidden_state


def mean_pool(text_BTC: Tensor, token_mask_BT: Tensor) -> Tensor:
    """Mean feature over the tokens of each sentence, [B, C]."""
    weight_BT1 = token_mask_BT.unsqueeze(-1).to(text_BTC.dtype)
    return (text_BTC * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp(min=1.0)
