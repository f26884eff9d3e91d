"""The strong text view: EDA candidates, then a filter on text embeddings.

Candidates are drawn where samples are read (pure, keyed); the filter needs the network's text tower and runs in the
training step. The choice among the survivors is random, not the most similar.

Left out of EDA (Wei and Zou, 2019): WordNet. The table of synonyms is small and ours (`stage2_train.synonyms`).
Ours: protected words (places, colours, numbers, negations) are never touched, and a swap exchanges neighbours only,
because swapping distant words turns "circle left of square" into another object.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from shared.errors import DataError
from stage2_train.synonyms import PROTECTED_WORDS, synonym_table


@dataclass(frozen=True, kw_only=True)
class StrongTextConfig:
    """The strong text view."""

    table: Literal["photo", "shapes"] = "photo"
    """Table of synonyms: `photo` for photographs, `shapes` for the embedded data."""
    replace_rate: float = 0.1
    """Share of words replaced by a synonym, at least one word (0 = never)."""
    insert_rate: float = 0.1
    """Share of words for which a synonym of some word is inserted, at least one (0 = never)."""
    swap_rate: float = 0.1
    """Share of words exchanged with their neighbour, at least one pair (0 = never)."""
    delete_rate: float = 0.1
    """Probability with which each word is deleted."""
    candidates: int = 9
    """Candidates beside the original; 0 turns the strong text view off."""
    similarity: float = 0.8
    """Least cosine between a candidate's and the weak text's embedding (the paper is silent: ours)."""
    protect: bool = True
    """Whether places, colours, numbers and negations stay untouched (ours)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("replace_rate", "insert_rate", "swap_rate", "delete_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise DataError(f"text.{name} is {getattr(self, name)}, not in [0,1]")
        if self.candidates < 0:
            raise DataError(f"text.candidates is {self.candidates}, below 0")
        if not -1.0 <= self.similarity <= 1.0:
            raise DataError(f"text.similarity is {self.similarity}, not in [-1,1]")


_cached_table = functools.lru_cache(maxsize=None)(synonym_table)


def draw_candidates(text: str, rng: np.random.Generator, config: StrongTextConfig) -> tuple[str, ...]:
    """The original text and `config.candidates` variants of it.

    Args:
        text: The weak text (already mirrored where the image is).
        rng: Source of every choice.
        config: Rates and table.

    Returns:
        `1 + config.candidates` texts, the original first; variants may equal it where nothing can be changed.
    """
    words = text.split()
    if not config.candidates or not words:
        return (text,) * (1 + config.candidates)
    table = _cached_table(config.table)
    per_kind = config.candidates // len(_OPERATIONS) + 1
    variants = [
        " ".join(operation(list(words), rng, config, table))
        for operation in _OPERATIONS
        for _ in range(per_kind)
    ]
    order = rng.permutation(len(variants))[: config.candidates]
    return (text, *(variants[int(i)] for i in order))


def choose_candidate(
    embedding_BKC: torch.Tensor, uniform_B: torch.Tensor, similarity: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick one text per sample among those close enough to the original.

    Args:
        embedding_BKC: Embeddings of K texts per sample, the original at index 0.
        uniform_B: One number per sample in [0,1), drawn beforehand.
        similarity: Least cosine to index 0.

    Returns:
        (index_B int64 in 0..K-1, survivors_B int64 >= 1). The original always survives.
    """
    unit_BKC = torch.nn.functional.normalize(embedding_BKC.float(), dim=-1)
    keep_BK = (unit_BKC * unit_BKC[:, :1]).sum(-1) >= similarity
    keep_BK[:, 0] = True
    survivors_B = keep_BK.sum(1)
    rank_B = (uniform_B.to(survivors_B.device) * survivors_B).long().clamp(max=survivors_B - 1)
    index_B = ((keep_BK.cumsum(1) - 1 == rank_B[:, None]) & keep_BK).long().argmax(1)
    return index_B, survivors_B


def _core(word: str) -> str:
    """The word without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def _free(word: str, config: StrongTextConfig) -> bool:
    return not (config.protect and _core(word) in PROTECTED_WORDS)


def _count(rate: float, num_words: int) -> int:
    return max(1, int(rate * num_words)) if rate > 0 else 0


def _pick(rng: np.random.Generator, options: list[int]) -> int:
    return options[int(rng.integers(len(options)))]


_Table = Mapping[str, tuple[str, ...]]


def _replace(
    words: list[str], rng: np.random.Generator, config: StrongTextConfig, table: _Table
) -> list[str]:
    places = [i for i, word in enumerate(words) if _core(word) in table and _free(word, config)]
    for place in rng.permutation(places)[: _count(config.replace_rate, len(words))] if places else ():
        synonyms = table[_core(words[int(place)])]
        words[int(place)] = synonyms[int(rng.integers(len(synonyms)))]
    return words


def _insert(words: list[str], rng: np.random.Generator, config: StrongTextConfig, table: _Table) -> list[str]:
    for _ in range(_count(config.insert_rate, len(words))):
        places = [i for i, word in enumerate(words) if _core(word) in table and _free(word, config)]
        if not places:
            break
        synonyms = table[_core(words[_pick(rng, places)])]
        words.insert(int(rng.integers(len(words) + 1)), synonyms[int(rng.integers(len(synonyms)))])
    return words


def _swap(words: list[str], rng: np.random.Generator, config: StrongTextConfig, table: _Table) -> list[str]:
    for _ in range(_count(config.swap_rate, len(words))):
        places = [i for i in range(len(words) - 1) if _free(words[i], config) and _free(words[i + 1], config)]
        if not places:
            break
        place = _pick(rng, places)
        words[place], words[place + 1] = words[place + 1], words[place]
    return words


def _delete(words: list[str], rng: np.random.Generator, config: StrongTextConfig, table: _Table) -> list[str]:
    keep = rng.random(len(words)) >= config.delete_rate
    kept = [word for word, stays in zip(words, keep, strict=True) if stays or not _free(word, config)]
    return kept or [words[int(rng.integers(len(words)))]]


_OPERATIONS: tuple[Callable[[list[str], np.random.Generator, StrongTextConfig, _Table], list[str]], ...] = (
    _replace,
    _insert,
    _swap,
    _delete,
)
