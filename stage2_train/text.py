"""Sentences to tokens, and token features to one feature per sentence.

Axes: B sentences, T tokens (special ones included, at most `TextConfig.max_tokens`), C channels.
"""

import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import BertTokenizer, PreTrainedTokenizerFast

from shared.errors import DataError
from shared.hub import VOCABULARIES
from shared.runlog import say
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


Tokenise = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Texts -> (token ids int64 [B,T], token mask bool [B,T])."""

MAX_LOOKED_AT = 20_000
"""Sentences that `Tokenizer.unread` looks at, a few seconds at most; of more, evenly spaced ones."""

MIN_UNKNOWN_SHARE = 0.01
"""Share of unknown words above which a note is worth the reader's time."""


@dataclass(frozen=True, kw_only=True)
class Unread:
    """What is lost of sentences before the network sees them."""

    num_all: int
    """Sentences there are."""
    num_sentences: int
    """Those that were looked at, evenly spaced."""
    num_cut: int
    """Of those, the ones longer than `max_tokens`."""
    max_tokens: int
    """Longest sentence, special tokens included."""
    num_words: int
    """Words of those looked at."""
    num_unknown: int
    """Words among them that the vocabulary lacks: [UNK], or spelled letter by letter."""

    def note(self) -> str:
        """In words; "" if next to nothing is lost."""
        parts = []
        if self.num_unknown > MIN_UNKNOWN_SHARE * self.num_words:
            share = self.num_unknown / self.num_words
            parts.append(
                f"{share:.1%} of the words are unknown to the tokenizer (spelled in letters, or [UNK])"
            )
        if self.num_cut:
            parts.append(
                f"{self.num_cut} of {self.num_sentences} sentences are longer than {self.max_tokens} tokens and are cut"
            )
        if parts and self.num_sentences < self.num_all:
            parts.append(f"of {self.num_all} sentences {self.num_sentences}, evenly spaced, were looked at")
        return "; ".join(parts)


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

    def unread(self, sentences: Sequence[str]) -> Unread:
        """What of some sentences the network does not get to see; at most `MAX_LOOKED_AT` are looked at."""
        num = min(len(sentences), MAX_LOOKED_AT)
        looked_at = [sentences[i * len(sentences) // num].lower() for i in range(num)]
        words = Counter(word for sentence in looked_at for one in sentence.split() if (word := _bare(one)))
        unknown = [
            word for word, ids in zip(words, self._ids(list(words), False), strict=True) if self._lacks(ids)
        ]
        return Unread(
            num_all=len(sentences),
            num_sentences=num,
            num_cut=sum(len(ids) > self.max_tokens for ids in self._ids(looked_at, True)),
            max_tokens=self.max_tokens,
            num_words=words.total(),
            num_unknown=sum(words[word] for word in unknown),
        )

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        """Token ids of each text, however many, with special tokens or without."""
        if not texts:
            return []
        return self._tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]

    def _lacks(self, ids: list[int]) -> bool:
        """Whether a word's tokens say nothing of the word: [UNK] among them, or WordPiece's single letters alone."""
        if self._tokenizer.unk_token_id in ids:
            return True
        pieces = self._tokenizer.convert_ids_to_tokens(ids)
        letters = [piece.removeprefix("##") for piece in pieces]
        return letters != pieces and all(len(letter) == 1 for letter in letters)


def say_unread(tokenise: Tokenizer, sentences: Sequence[str]) -> None:
    """One note on standard error if a share of the words, or the end of a sentence, does not reach the network."""
    note = tokenise.unread(sentences).note()
    if note:
        say(f"note: {note}")


def _bare(word: str) -> str:
    return word.strip(string.punctuation)


def mean_pool(text_BTC: Tensor, token_mask_BT: Tensor) -> Tensor:
    """Mean feature over the tokens of each sentence, [B, C]."""
    weight_BT1 = token_mask_BT.unsqueeze(-1).to(text_BTC.dtype)
    return (text_BTC * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp(min=1.0)
