"""What the model knew about each edge: distributions over coordinates from the log-probabilities of its tokens.

Legend: K tokens of one number, V = extent of the answer frame + 1 integer positions (0..extent).

A number is written by one or several tokens. For each token the engine reports the most probable alternatives. The
distribution is a first-deviation expansion: an alternative at token i stands for all values that share the greedy
text before i and continue with the alternative,

    P(value) = sum_i  [prod_{j<i} P(greedy_j)] * P(alternative_i) / (number of values it can still become),

plus the probability of the greedy number itself. Where numbers are one token each (the embedded model) this is exactly
the token's distribution. Where digits are tokens (Qwen2.5) an alternative digit fixes the leading digits and the
remaining ones are taken as uniform, the number of digits being that of the greedy answer; an alternative that ends the
number early, or a digit where the greedy answer ended, gives the exact shorter or longer value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ENDS = (",", ";", " ", "]", ")", "}", "\n")
"""Characters that end a number; any other text after digits is no box and its probability is left out."""


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
    prob_4: tuple[np.ndarray, ...]
    """Four float64 [V] distributions over 0..extent, each summing to 1 (x1 and x2 over the width)."""


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
    text: str, tokens: Sequence[Token], spans_4: Sequence[tuple[int, int]], frame_hw: tuple[int, int]
) -> EdgeKnowledge | None:
    """Distributions of the four edges of a box.

    Args:
        text: The answer.
        tokens: Its tokens with alternatives.
        spans_4: Character spans of x1, y1, x2, y2.
        frame_hw: Extent (height, width) of the answer frame.

    Returns:
        None if the engine gave no tokens or those of a number do not line up with the text.
    """
    spans = token_spans(text, tokens)
    height, width = frame_hw
    logprob, prob, used = [], [], []
    for number_span, extent in zip(spans_4, (width, height, width, height), strict=True):
        indices = [
            i for i, (start, end) in enumerate(spans) if start < number_span[1] and end > number_span[0]
        ]
        if not indices or spans[indices[0]][0] > number_span[0] or spans[indices[-1]][1] < number_span[1]:
            return None
        used += indices
        logprob.append(sum(tokens[i].logprob for i in indices))
        prob.append(number_distribution(text, tokens, spans, indices, number_span, extent))
    coordinate_tokens = sorted(set(used))
    confidence = sum(tokens[i].logprob for i in coordinate_tokens) / len(coordinate_tokens)
    return EdgeKnowledge(
        logprob_4=np.asarray(logprob, np.float32), confidence=float(confidence), prob_4=tuple(prob)
    )


def number_distribution(
    text: str,
    tokens: Sequence[Token],
    spans: Sequence[tuple[int, int]],
    indices: Sequence[int],
    number_span: tuple[int, int],
    extent: int,
) -> np.ndarray:
    """Distribution of one number over 0..extent.

    Args:
        text: The answer.
        tokens: All its tokens.
        spans: Their character spans.
        indices: Tokens that carry a part of this number, in order.
        number_span: Character span of the number.
        extent: Greatest value of the answer frame; mass beyond it is put on it.

    Returns:
        float64 [extent + 1], sums to 1. A number that is not a plain non-negative integer, or tokens without
        alternatives, give a point mass at the (rounded, clipped) answer.
    """
    written = text[number_span[0] : number_span[1]]
    prob_V = np.zeros(extent + 1)
    if not written.isdecimal():
        prob_V[min(max(round(float(written)), 0), extent)] = 1.0
        return prob_V
    single = len(indices) == 1
    prefix_prob = 1.0
    for i in indices:
        start = max(spans[i][0], number_span[0])
        lead, known = text[spans[i][0] : start], text[number_span[0] : start]
        for alternative, logprob in _others(tokens[i]):
            total_digits = len(known) if single else len(written)
            _add_alternative(prob_V, alternative, lead, known, total_digits, prefix_prob * math.exp(logprob))
        prefix_prob *= math.exp(tokens[i].logprob)
    last, longer = indices[-1], 0.0
    digit_tokens = not single or len(written) == 1
    if digit_tokens and spans[last][1] == number_span[1] and last + 1 < len(tokens):
        for alternative, logprob in _others(tokens[last + 1]):
            if alternative[:1].isdecimal():
                _add_alternative(prob_V, alternative, "", written, 0, prefix_prob * math.exp(logprob))
                longer += math.exp(logprob)
    prob_V[min(int(written), extent)] += prefix_prob * max(1.0 - longer, 0.0)
    total = prob_V.sum()
    if not total > 0:
        prob_V[min(int(written), extent)] = total = 1.0
    return prob_V / total


def _others(token: Token) -> list[tuple[str, float]]:
    """Alternatives other than the chosen token (same text counts as the same token)."""
    return [(text, logprob) for text, logprob in token.alternatives if text != token.text and logprob > -50.0]


def _add_alternative(
    prob_V: np.ndarray, alternative: str, lead: str, known: str, total_digits: int, mass: float
) -> None:
    """Spread `mass` over the values that `known` followed by `alternative` can become (in place).

    Args:
        prob_V: float64 [V], the distribution so far.
        alternative: Text of the alternative token.
        lead: What the token must begin with before the number's digits (such as a bracket).
        known: Digits written before this token.
        total_digits: Digits the finished number is taken to have; fewer known ones are filled uniformly.
        mass: Probability to spread. Lost if the alternative is no number here (the caller normalises).
    """
    if not alternative.startswith(lead):
        return
    rest = alternative[len(lead) :]
    if not known:
        rest = rest.lstrip(" ")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    ended = len(digits) < len(rest)
    if not (known + digits) or (not digits and rest[:1] not in _ENDS):
        return
    last = len(prob_V) - 1
    free = 0 if ended else max(0, total_digits - len(known) - len(digits))
    if free > 6 or len(known + digits) > 9:
        prob_V[last] += mass
        return
    first = int(known + digits) * 10**free
    count = 10**free
    inside = min(max(last - first + 1, 0), count)
    prob_V[first : first + inside] += mass / count
    prob_V[last] += mass * (count - inside) / count
