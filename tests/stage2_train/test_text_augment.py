import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.seeding import rng
from shared.synth.expressions import VOCABULARY
from stage2_train.synonyms import PHOTO_GROUPS, PROTECTED_WORDS, SHAPE_GROUPS, TABLES, synonym_table
from stage2_train.text_augment import StrongTextConfig, choose_candidate, draw_candidates

ONLY = {"replace_rate": 0.0, "insert_rate": 0.0, "swap_rate": 0.0, "delete_rate": 0.0}


@pytest.mark.parametrize("groups", [PHOTO_GROUPS, SHAPE_GROUPS])
def test_no_protected_word_is_in_a_table_and_no_word_in_two_groups(groups: tuple) -> None:
    words = list(itertools.chain.from_iterable(groups))
    assert not PROTECTED_WORDS & set(words)
    assert len(words) == len(set(words))


def test_shape_words_are_known_to_the_embedded_vocabulary() -> None:
    assert set(itertools.chain.from_iterable(SHAPE_GROUPS)) <= set(VOCABULARY)


@pytest.mark.parametrize("name", TABLES)
def test_synonyms_are_mutual(name: str) -> None:
    table = synonym_table(name)
    for word, others in table.items():
        assert word not in others and all(word in table[other] for other in others)


_texts = st.lists(st.sampled_from([*VOCABULARY, "man", "couch", "Left,", "no"]), min_size=1, max_size=12).map(
    " ".join
)


@settings(deadline=None)
@given(_texts, st.integers(0, 1000), st.sampled_from(["photo", "shapes"]))
def test_protected_words_stay_in_order(text: str, seed: int, table: str) -> None:
    def protected(some: str) -> list[str]:
        return [word for word in some.lower().replace(",", "").split() if word in PROTECTED_WORDS]

    config = StrongTextConfig(table=table, delete_rate=0.5)  # type: ignore[arg-type]
    candidates = draw_candidates(text, rng(seed), config)
    assert candidates[0] == text and len(candidates) == 10
    for candidate in candidates:
        assert protected(candidate) == protected(text)
        assert candidate.split()


def test_candidates_are_a_function_of_the_key() -> None:
    text, config = "the big red circle near a small square", StrongTextConfig(table="shapes")
    assert draw_candidates(text, rng(1), config) == draw_candidates(text, rng(1), config)
    assert draw_candidates(text, rng(1), config) != draw_candidates(text, rng(2), config)


def test_replacement_uses_the_table() -> None:
    config = StrongTextConfig(table="shapes", **{**ONLY, "replace_rate": 0.1})
    variants = {c for seed in range(30) for c in draw_candidates("red circle", rng(seed), config)}
    assert variants == {"red circle", "red disc"}


def test_swaps_exchange_neighbours() -> None:
    config = StrongTextConfig(**{**ONLY, "swap_rate": 0.1})
    variants = {c for seed in range(60) for c in draw_candidates("a b c", rng(seed), config)}
    assert variants == {"a b c", "b a c", "a c b"}


@pytest.mark.parametrize("text", ["circle left square", "circle left", "left square"])
def test_no_word_changes_sides_with_a_place(text: str) -> None:
    config = StrongTextConfig(**{**ONLY, "swap_rate": 1.0})
    assert set(draw_candidates(text, rng(0), config)) == {text}


def test_insertion_adds_one_synonym() -> None:
    config = StrongTextConfig(**{**ONLY, "insert_rate": 0.1})
    variants = {c for seed in range(60) for c in draw_candidates("red couch", rng(seed), config)}
    assert variants == {"red couch", "sofa red couch", "red sofa couch", "red couch sofa"}


def test_deletion_never_empties_a_text() -> None:
    config = StrongTextConfig(**{**ONLY, "delete_rate": 1.0})
    variants = {c for seed in range(30) for c in draw_candidates("big dog", rng(seed), config)}
    assert variants == {"big dog", "big", "dog"}


def test_without_protection_places_may_go() -> None:
    config = StrongTextConfig(**{**ONLY, "delete_rate": 1.0}, protect=False)
    assert "dog" in draw_candidates("left dog", rng(0), config) + draw_candidates("left dog", rng(1), config)


@pytest.mark.parametrize("text", ["", " ", "left"])
def test_texts_with_nothing_to_change(text: str) -> None:
    assert draw_candidates(text, rng(0), StrongTextConfig()) == (text,) * 10


def _embeddings(*cosines: float) -> torch.Tensor:
    return torch.tensor([[[1.0, 0.0], *[[c, (1 - c * c) ** 0.5] for c in cosines]]])


@pytest.mark.parametrize(("uniform", "index"), [(0.0, 0), (0.34, 2), (0.7, 3), (0.9999, 3)])
def test_the_choice_is_uniform_among_survivors(uniform: float, index: int) -> None:
    """Candidate 1 falls below 0.8; 0, 2 and 3 survive with a third each."""
    chosen, survivors = choose_candidate(_embeddings(0.5, 0.81, 0.99), torch.tensor([uniform]), 0.8)
    assert (chosen.tolist(), survivors.tolist()) == ([index], [3])


def test_candidates_are_compared_with_the_original() -> None:
    chosen, survivors = choose_candidate(_embeddings(0.9, 0.0), torch.tensor([0.9]), 0.8)
    assert (chosen.tolist(), survivors.tolist()) == ([1], [2])


def test_the_original_survives_even_alone() -> None:
    zero = torch.zeros(1, 3, 4)
    chosen, survivors = choose_candidate(zero, torch.tensor([0.99]), 0.8)
    assert (chosen.tolist(), survivors.tolist()) == ([0], [1])
