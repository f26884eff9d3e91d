"""Sentences to tokens, and token features to one feature per sentence.

Axes: B sentences, T tokens (special ones included, at most `TextConfig.max_tokens`), C channels.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import BertTokenizer, PreTrainedTokenizerFast

from shared.errors import DataError
from shared.hub import VOCABULARIES
from stage2_train.backbones.pretrained import pretrained_folder
from stage2_train.segmentor_config import EMBEDDED, EMBEDDED_FOLDER, SegmentorConfig, TextConfig

TOKENIZER_FILES = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json")
"""Files that make up a tokenizer; the second must be there, or for BERT the first."""


def tokenizer_folder(config: TextConfig) -> Path:
    """Where a config's tokenizer lies.

    Raises:
        DataError: There is no vocabulary of the kind that the tower needs.
    """
    if config.tokenizer == EMBEDDED:
        return EMBEDDED_FOLDER
    folder = pretrained_folder(config.tokenizer, "text.tokenizer", has_weights=False)
    names = TOKENIZER_FILES[:2] if config.kind == "bert" else TOKENIZER_FILES[1:2]
    if not any((folder / name).is_file() for name in names):
        raise DataError(f"{folder}: no {' or '.join(names)}; set text.tokenizer to a folder that has one")
    return folder


class Tokenizer:
    """Sentences to token ids, padded to the longest of the batch."""

    def __init__(self, config: SegmentorConfig, one_length: bool = False) -> None:
        """Load the vocabulary of `config.text.tokenizer`.

        Args:
            config: The network's.
            one_length: Pad every batch to `text.max_tokens`, so that compiled code sees one shape.

        Raises:
            DataError: The folder holds no vocabulary, or one larger than the word embedding.
        """
        text = config.text
        folder = tokenizer_folder(text)
        tokenizer_class = BertTokenizer if text.kind == "bert" else PreTrainedTokenizerFast
        self._tokenizer = tokenizer_class.from_pretrained(str(folder), local_files_only=True)
        self.max_tokens, self._padding = text.max_tokens, "max_length" if one_length else "longest"
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
            [sentence.lower() for sentence in sentences],
            padding=self._padding,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return batch["input_ids"], batch["attention_mask"].bool()


def mean_pool(text_BTC: Tensor, token_mask_BT: Tensor) -> Tensor:
    """Mean feature over the tokens of each sentence, [B, C]."""
    weight_BT1 = token_mask_BT.unsqueeze(-1).to(text_BTC.dtype)
    return (text_BTC * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp(min=1.0)
