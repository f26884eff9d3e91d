"""Edge distributions against hand-computed ones."""

import math

import numpy as np
import pytest

from stage1_priors.edges import Token, edge_knowledge, number_distribution, token_spans


def token(text, prob=1.0, **others):
    """A token with alternatives given as text=probability (underscore-free names only)."""
    pairs = tuple((name, math.log(value)) for name, value in others.items())
    return Token(text=text, logprob=math.log(prob), alternatives=((text, math.log(prob)), *pairs))


def distribution(tokens, written, extent, unit=1.0):
    text = "".join(item.text for item in tokens)
    start = text.index(written)
    span = (start, start + len(written))
    spans = token_spans(text, tokens)
    indices = [i for i, (a, b) in enumerate(spans) if a < span[1] and b > span[0]]
    return number_distribution(text, tokens, spans, indices, span, extent, unit)


def expected(extent, **masses):
    prob = np.zeros(extent + 1)
    for name, mass in masses.items():
        prob[int(name[1:])] = mass
    return prob / prob.sum()


def test_one_token_per_number():
    tokens = [token("["), token("57", 0.6, **{"56": 0.3, "58": 0.05, "100": 0.05}), token("]")]
    np.testing.assert_allclose(
        distribution(tokens, "57", 112), expected(112, v57=0.6, v56=0.3, v58=0.05, v100=0.05)
    )


def test_missing_mass_is_normalised_away():
    tokens = [token("["), token("57", 0.6, **{"56": 0.2, "cat": 0.2}), token("]")]
    np.testing.assert_allclose(distribution(tokens, "57", 112), expected(112, v57=0.75, v56=0.25))


def test_digit_tokens_first_deviation():
    # 1st digit: 1 (0.8) or 2 (0.2); 2nd digit after 1: 5 (0.5), 4 (0.3), 6 (0.2)
    tokens = [token("["), token("1", 0.8, **{"2": 0.2}), token("5", 0.5, **{"4": 0.3, "6": 0.2}), token("]")]
    want = expected(30, v15=0.8 * 0.5, v14=0.8 * 0.3, v16=0.8 * 0.2, **{f"v{v}": 0.02 for v in range(20, 30)})
    np.testing.assert_allclose(distribution(tokens, "15", 30), want)


def test_digit_tokens_that_end_early_or_go_on():
    # after "1" the number may end (","): value 1; after "15" another digit may follow: 152
    tokens = [
        token("["),
        token("1"),
        token("5", 0.7, **{",": 0.3}),
        token(",", 0.9, **{"2": 0.1}),
    ]
    want = expected(200, v1=0.3, v15=0.7 * 0.9, v152=0.7 * 0.1)
    np.testing.assert_allclose(distribution(tokens, "15", 200), want)


def test_tokens_of_several_characters():
    # "[1" then "23": the first token carries the bracket, the second two digits at once
    tokens = [token("[1", 0.5, **{"[2": 0.5}), token("23", 0.6, **{"4": 0.4}), token("]")]
    want = np.zeros(400)
    want[123] = 0.5 * 0.6
    want[140:150] += 0.5 * 0.4 / 10
    want[200:300] += 0.5 / 100
    np.testing.assert_allclose(distribution(tokens, "123", 399), want / want.sum())


def test_alternatives_without_the_leading_bracket_do_not_count():
    tokens = [token("[1", 0.5, **{"(9": 0.5}), token("]")]
    np.testing.assert_allclose(distribution(tokens, "1", 10), expected(10, v1=1))


def test_mass_beyond_the_frame_sits_on_its_edge():
    tokens = [token("["), token("9", 0.5, **{"3": 0.5}), token("5"), token("]")]
    prob = distribution(tokens, "95", 50)
    want = np.zeros(51)
    want[50] = 0.5
    want[30:40] = 0.05
    np.testing.assert_allclose(prob, want)


def test_special_tokens_as_alternatives_are_no_values():
    tokens = [token("["), token("1"), token("5", 0.5, **{"": 0.25, "<|im_end|>": 0.25}), token("]")]
    np.testing.assert_allclose(distribution(tokens, "15", 30), expected(30, v15=1))


@pytest.mark.parametrize(("written", "alternatives"), [("12.7", True), ("-12", True), ("12", False)])
def test_no_distribution_but_a_confidence(written, alternatives):
    """A decimal in whole units, a negative number, a number without alternatives: the other three are not enough."""
    texts = ["[", written, ",", "20", ",", "30", ",", "40", "]"]
    tokens = [token(text, 0.5) for text in texts]
    if not alternatives:
        tokens[1] = Token(text=written, logprob=math.log(0.5))
    text = "".join(texts)
    spans = [(text.index(number), text.index(number) + len(number)) for number in (written, "20", "30", "40")]
    knowledge = edge_knowledge(text, tokens, spans, (50, 60))
    assert knowledge.prob_4 is None and knowledge.confidence == pytest.approx(math.log(0.5))
    np.testing.assert_allclose(knowledge.logprob_4, math.log(0.5), rtol=1e-6)


def shares(**masses):
    """Distribution over thousandths, from masses by thousandth."""
    return expected(1000, **masses)


DECIMALS = {
    "a token per digit": (
        [
            token("0"),
            token("."),
            token("3", 0.6, **{"4": 0.3, "2": 0.1}),
            token("5", 0.5, **{"6": 0.3, ",": 0.2}),
            token(","),
        ],
        shares(
            v350=0.6 * 0.5,
            v360=0.6 * 0.3,
            v300=0.6 * 0.2,
            **{f"v{400 + 10 * k}": 0.03 for k in range(10)},
            **{f"v{200 + 10 * k}": 0.01 for k in range(10)},
        ),
    ),
    "another whole part": (
        [token("0", 0.8, **{"1": 0.2}), token("."), token("3"), token("5"), token("]")],
        shares(v350=0.8, v1000=0.2),
    ),
    "one more decimal": (
        [token("0"), token("."), token("3"), token("5"), token(",", 0.7, **{"2": 0.3})],
        shares(v350=0.7, v352=0.3),
    ),
    "point and decimal in one token": (
        [token("[0"), token(".3", 0.5, **{".4": 0.5}), token("5"), token("]")],
        shares(v350=0.5, **{f"v{400 + 10 * k}": 0.05 for k in range(10)}),
    ),
    "one token": (
        [token("0.35", 0.5, **{"0.4": 0.25, "1": 0.25}), token("]")],
        shares(v350=0.5, v400=0.25, v1000=0.25),
    ),
    "no point": (
        [token("0"), token(".", 0.75, **{",": 0.25}), token("3"), token("5"), token("]")],
        shares(v350=0.75, v0=0.25),
    ),
}


@pytest.mark.parametrize("name", DECIMALS)
def test_decimals_in_a_frame_of_shares(name):
    tokens, want = DECIMALS[name]
    np.testing.assert_allclose(distribution(tokens, "0.35", 1, 0.001), want, atol=1e-12)


def test_more_decimals_than_the_unit_are_rounded():
    tokens = [
        token("0"),
        token("."),
        token("3"),
        token("5"),
        token("1"),
        token("8", 0.5, **{"2": 0.5}),
        token("]"),
    ]
    np.testing.assert_allclose(distribution(tokens, "0.3518", 1, 0.001), shares(v352=0.5, v351=0.5))


def test_token_spans_skip_what_the_text_leaves_out():
    tokens = [Token(text=text, logprob=0.0) for text in ("[", "1", "]", "<|im_end|>")]
    assert token_spans("[1]", tokens) == [(0, 1), (1, 2), (2, 3), (3, 3)]
    assert token_spans("[ 1 ]", tokens) == [(0, 1), (2, 3), (4, 5), (5, 5)]


def test_token_spans_find_their_way_after_pieces_of_characters():
    texts = ["a", " \ufffd", "\ufffd", "\ufffd", " [", "1", "]"]
    tokens = [Token(text=text, logprob=0.0) for text in texts]
    spans = token_spans("a \u732b [1]", tokens)
    assert spans[0] == (0, 1) and spans[4:] == [(3, 5), (5, 6), (6, 7)]


def test_tokens_of_another_text_give_no_knowledge():
    tokens = [Token(text=text, logprob=-0.1) for text in ("[", "1", ",", "2", "]")]
    text = "[1,7,30,40]"
    assert edge_knowledge(text, tokens, [(1, 2), (3, 4), (5, 7), (8, 10)], (50, 60)) is None


def test_tokens_that_end_within_a_number_give_no_knowledge():
    """As of an answer whose last tokens the engine did not report."""
    text = "[1,2,3,45]"
    tokens = [token(char, 0.5) for char in text[:-2]]
    spans = [(1, 2), (3, 4), (5, 6), (7, 9)]
    assert edge_knowledge(text, tokens, spans, (50, 60)) is None
    assert edge_knowledge(text, [*tokens, token("5")], spans, (50, 60)) is not None


def test_a_token_that_two_numbers_share_counts_once():
    text = "[1,2,3,4]"
    tokens = [
        token("["),
        token("1,2", 0.1),
        token(","),
        token("3", 0.4),
        token(","),
        token("4", 0.2),
        token("]"),
    ]
    knowledge = edge_knowledge(text, tokens, [(1, 2), (3, 4), (5, 6), (7, 8)], (50, 60))
    assert knowledge.confidence == pytest.approx(math.log(0.1 * 0.4 * 0.2) / 3)
    np.testing.assert_allclose(knowledge.logprob_4, np.log([0.1, 0.1, 0.4, 0.2]), rtol=1e-6)


def test_knowledge_of_a_box():
    texts = ["[", "10", ",", "20", ",", "30", ",", "40", "]"]
    tokens = [token(text, 0.5 if text.isdecimal() else 1.0) for text in texts]
    text = "".join(texts)
    spans = [(text.index(number), text.index(number) + 2) for number in ("10", "20", "30", "40")]
    knowledge = edge_knowledge(text, tokens, spans, (50, 60))
    np.testing.assert_allclose(knowledge.logprob_4, math.log(0.5), rtol=1e-6)
    assert knowledge.confidence == pytest.approx(math.log(0.5))
    assert [len(prob) for prob in knowledge.prob_4] == [61, 51, 61, 51]
    assert [int(prob.argmax()) for prob in knowledge.prob_4] == [10, 20, 30, 40]
    assert edge_knowledge(text, [], spans, (50, 60)) is None
