"""What the model knew about each edge: distributions over coordinates from the log-probabilities of its tokens.

Legend: K tokens of one number, V = extent / unit + 1 positions (0, unit, 2 unit, .. extent) of the answer frame.

A number is written by one or several tokens. For each token the engine reports the most probable alternatives. The
distribution is a first-deviation expansion: an alternative at token i stands for all values that share the greedy
text before i and continue with the alternative,

    P(value) = sum_i  [prod_{j<i} P(greedy_j)] * P(alternative_i) / (number of values it can still become),

plus the probability of the greedy number itself. Where numbers are one token each (the embedded model) this is exactly
the token's distribution. Where digits are tokens (Qwen2.5) an alternative digit fixes the leading digits and the
remaining ones are taken as uniform, the number of digits being that of the greedy answer; an alternative that ends the
number early, or a digit where the greedy answer ended, gives the exact shorter or longer value.

Families by their notation, with the tokenizers their models ship with (a token per digit in all of them):

    Qwen2.5-VL       [10, 200, ...   integers of pixels; extent = side of the resized image, unit 1
    Qwen3-VL         [10, 200, ...   integers; extent 1000, unit 1
    InternVL3        [[10, 200, ...  the same; `<box>` is a special token that the text leaves out
    LLaVA-OneVision  [0.01, 0.2, ... decimals; extent 1, unit 0.001. "0", "." and each decimal are tokens; an
                     alternative decimal fixes the leading ones, and the rest is uniform over those of the answer

No distribution can be formed where a number is negative, or a decimal in a frame of whole units, or where its tokens
come without alternatives. The proposer then takes logistic edges for that box. The confidence, the mean log-probability
of all tokens that hold a part of a number, is known all the same. Where tokens do not line up with the text, nothing
is known.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ENDS = (",", ";", " ", "]", ")", "}", "\n")
"""Characters that end a number; any other text after digits is no box and its probability is left out."""
_INTEGER = re.compile(r"[0-9]+")
_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DIGITS = re.compile(r"[0-9]*")
_DIGITS_AND_POINT = re.compile(r"[0-9]*(?:\.[0-9]*)?")


@dataclass(frozen=True, kw_only=True)
class Token:
    """One generated token."""

    text: str
    """Its text."""
    logprob: float
    """Its log-probability under the model (temperature 1)."""
    alternatives: tuple[tuple[str, float], ...] = ()
    """(text, log-probability) of the most probable tokens at this position, the chosen one among them or not."""


@dataclass(frozen=True, kw_only=True)
class EdgeKnowledge:
    """What the tokens of one box said about its four numbers."""

    logprob_4: np.ndarray
    """float32 [4]: log-probability of each number's text."""
    confidence: float
    """Mean log-probability over the tokens of the four numbers."""
    prob_4: tuple[np.ndarray, ...] | None
    """Four float64 [V] distributions over 0..extent in steps of the unit, each summing to 1 (x1, x2 over the width).

    None if one of the numbers has none.
    """


def token_spans(text: str, tokens: Sequence[Token]) -> list[tuple[int, int]]:
    """Character span of each token in `text`.

    White space may differ (some tokenisers insert it when decoding). Tokens that cannot be placed get an empty span:
    special ones that the text leaves out, and pieces of a character (U+FFFD); after those the next whole token is
    looked for a few characters ahead.
    """
    spans: list[tuple[int, int]] = []
    position, num_pieces = 0, 0
    for token in tokens:
        if "\ufffd" in token.text or not token.text:
            num_pieces += bool(token.text)
            spans.append((position, position))
            continue
        start, piece = position, token.text
        if num_pieces:
            start = text.find(piece, position, position + 4 * num_pieces + len(piece))
        elif not text.startswith(piece, start):
            piece = piece.strip()
            while start < len(text) and text[start].isspace():
                start += 1
            if not piece or not text.startswith(piece, start):
                start = -1
        if start < 0:
            spans.append((position, position))
            continue
        position, num_pieces = start + len(piece), 0
        spans.append((start, position))
    return spans


def edge_knowledge(
    text: str,
    tokens: Sequence[Token],
    spans_4: Sequence[tuple[int, int]],
    frame_hw: tuple[int, int],
    unit: float = 1.0,
) -> EdgeKnowledge | None:
    """Distributions of the four edges of a box.

    Args:
        text: The answer.
        tokens: Its tokens with alternatives.
        spans_4: Character spans of x1, y1, x2, y2.
        frame_hw: Extent (height, width) of the answer frame.
        unit: Step in which the family counts.

    Returns:
        None if the engine gave no tokens or those of a number do not line up with the text.
    """
    spans = token_spans(text, tokens)
    height, width = frame_hw
    logprob: list[float] = []
    prob: list[np.ndarray] = []
    used: list[int] = []
    for number_span, extent in zip(spans_4, (width, height, width, height), strict=True):
        indices = [
            i for i, (start, end) in enumerate(spans) if start < number_span[1] and end > number_span[0]
        ]
        if not indices or spans[indices[0]][0] > number_span[0] or spans[indices[-1]][1] < number_span[1]:
            return None
        used += indices
        logprob.append(sum(tokens[i].logprob for i in indices))
        prob_V = number_distribution(text, tokens, spans, indices, number_span, extent, unit)
        prob += [] if prob_V is None else [prob_V]
    coordinate_tokens = sorted(set(used))
    confidence = sum(tokens[i].logprob for i in coordinate_tokens) / len(coordinate_tokens)
    return EdgeKnowledge(
        logprob_4=np.asarray(logprob, np.float32),
        confidence=float(confidence),
        prob_4=tuple(prob) if len(prob) == 4 else None,
    )


def number_distribution(
    text: str,
    tokens: Sequence[Token],
    spans: Sequence[tuple[int, int]],
    indices: Sequence[int],
    number_span: tuple[int, int],
    extent: int,
    unit: float = 1.0,
) -> np.ndarray | None:
    """Distribution of one number over 0..extent.

    Args:
        text: The answer.
        tokens: All its tokens.
        spans: Their character spans.
        indices: Tokens that carry a part of this number, in order.
        number_span: Character span of the number.
        extent: Greatest value of the answer frame; mass beyond it is put on it.
        unit: Step between positions; below 1 the numbers may have decimals.

    Returns:
        float64 [extent / unit + 1], sums to 1. None if the number is not a plain non-negative integer (or decimal,
        where the unit is below 1), or its tokens come without alternatives.
    """
    written = text[number_span[0] : number_span[1]]
    if not (_DECIMAL if unit < 1 else _INTEGER).fullmatch(written):
        return None
    if not any(tokens[i].alternatives for i in indices):
        return None
    last_position = round(extent / unit)
    prob_V = np.zeros(last_position + 1)
    answered = min(round(float(written) / unit), last_position)
    single = len(indices) == 1
    whole, _, decimals = written.partition(".")
    places = None if single else (len(whole), len(decimals))
    prefix_prob = 1.0
    for i in indices:
        start = max(spans[i][0], number_span[0])
        lead, known = text[spans[i][0] : start], text[number_span[0] : start]
        for alternative, logprob in _others(tokens[i]):
            _add_alternative(prob_V, alternative, lead, known, places, prefix_prob * math.exp(logprob), unit)
        prefix_prob *= math.exp(tokens[i].logprob)
    last, longer = indices[-1], 0.0
    digit_tokens = not single or len(written) == 1
    if digit_tokens and spans[last][1] == number_span[1] and last + 1 < len(tokens):
        for alternative, logprob in _others(tokens[last + 1]):
            if alternative[:1].isdecimal():
                _add_alternative(
                    prob_V, alternative, "", written, None, prefix_prob * math.exp(logprob), unit
                )
                longer += math.exp(logprob)
    prob_V[answered] += prefix_prob * max(1.0 - longer, 0.0)
    total = prob_V.sum()
    if not total > 0:
        prob_V[answered] = total = 1.0
    return prob_V / total


def _others(token: Token) -> list[tuple[str, float]]:
    """Alternatives other than the chosen token (same text counts as the same token)."""
    return [(text, logprob) for text, logprob in token.alternatives if text != token.text and logprob > -50.0]


def _add_alternative(
    prob_V: np.ndarray,
    alternative: str,
    lead: str,
    known: str,
    places: tuple[int, int] | None,
    mass: float,
    unit: float,
) -> None:
    """Spread `mass` over the values that `known` followed by `alternative` can become (in place).

    Args:
        prob_V: float64 [V], the distribution so far.
        alternative: Text of the alternative token.
        lead: What the token must begin with before the number's digits (such as a bracket).
        known: What of the number was written before this token.
        places: Digits before and after the point that the finished number is taken to have; those that are not known
            are filled uniformly. None: no more digits come.
        mass: Probability to spread. Lost if the alternative is no number here (the caller normalises).
        unit: Step between positions.
    """
    if not alternative.startswith(lead):
        return
    rest = alternative[len(lead) :]
    if not known:
        rest = rest.lstrip(" ")
    match = (_DIGITS_AND_POINT if unit < 1 and "." not in known else _DIGITS).match(rest)
    piece = match.group() if match else ""
    whole, point, decimals = (known + piece).partition(".")
    if not whole or (not piece and rest[:1] not in _ENDS):
        return
    last = len(prob_V) - 1
    free_whole = free_decimals = 0
    if places is not None and len(piece) == len(rest):
        free_whole = 0 if point else max(0, places[0] - len(whole))
        free_decimals = max(0, places[1] - len(decimals))
    free = free_whole + free_decimals
    if free > 6 or len(whole) > 9:
        prob_V[last] += mass
        return
    step = 10.0 ** -(len(decimals) + free_decimals) / unit
    first = int(whole + decimals) * 10**free
    if free == 0:
        prob_V[min(round(first * step), last)] += mass
        return
    position_N = np.rint((first + np.arange(10**free)) * step).astype(np.int64)
    prob_V += np.bincount(np.minimum(position_N, last), minlength=last + 1) * (mass / 10**free)
