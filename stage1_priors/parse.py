"""From the text of an answer to a box and a reason: a pure, tolerant parser.

Nothing in an answer is evaluated; the text is only searched with regular expressions. Every answer ends in exactly one
`AnswerStatus`:

    EMPTY         nothing but white space
    REPEATED      the text loops: no box was found, or the token limit was reached while looping
    TRUNCATED     the token limit cut the answer before a whole box
    NO_BOX        text without four numbers that form a box (a refusal, prose, a list of another length)
    DEGENERATE    a side shorter than one unit of the answer frame (after sorting the corners)
    OUT_OF_RANGE  less than half of the box lies inside the frame: another frame, or nonsense
    CLIPPED       at least half lies inside; what stuck out by more than the tolerance was cut
    MULTIPLE      several different boxes; the first one is used
    OK            one usable box

Decisions: corners given in another order are sorted and stay OK. The same box several times is one box. A box whose
parts stick out by at most `tolerance` of the side is clipped silently. Boxes under a `bbox...` key win over other
numbers in the text; a run of exactly four bare numbers counts only where the text has no brackets at all. Points in
brackets of their own make boxes two by two; an odd number of them in a row is an outline, not a box.
MULTIPLE wins over CLIPPED. One notation serves most families: JSON under `bbox_2d`, `<box>[[x1, y1, x2, y2]]</box>`,
`<|box_start|>(x1,y1),(x2,y2)<|box_end|>` and bare lists of shares are all bracketed quadruples. A family of another
brings its own `Parser`, which finds the numbers; what they are worth is decided here for all.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.types import AnswerStatus

PARSER_VERSION = "1"
"""Changes whenever the same numbers could get another status or box; part of the store's fingerprint."""

Box = tuple[float, float, float, float]
Spans = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]

Order = Literal["xyxy", "yxyx"]
"""Order of a box's four numbers in a text."""

_SPACE = r"\s{0,8}"
_NUMBER = r"(?<![\d.])(-?\d{1,9}(?:\.\d+)?)(?!\d)"
_COMMA = _SPACE + r"[,;\s]" + _SPACE
_QUAD = _COMMA.join([_NUMBER] * 4)
_PAIR = _COMMA.join([_NUMBER] * 2)
_OPEN, _CLOSE = r"[\[(]" + _SPACE, _SPACE + ",?" + _SPACE + r"[\])]"
_NAMED = _SPACE + "," + _SPACE
_POINT = _OPEN + _PAIR + _CLOSE
_PATTERNS = (
    re.compile(r"""bbox\w{0,16}["']?\s?[:=]\s?""" + _OPEN + _QUAD + _CLOSE, re.IGNORECASE),
    re.compile(_OPEN + _QUAD + _CLOSE),
    re.compile(_NAMED.join(rf"""["']?{name}["']?\s?[:=]\s?{_NUMBER}""" for name in ("x1", "y1", "x2", "y2"))),
)
"""In order of trust; the first pattern with a match decides. Bounded white space keeps the search linear."""
_POINTS = re.compile(rf"{_POINT}(?:{_SPACE},?{_SPACE}{_POINT})+")
_RUN = re.compile(rf"{_NUMBER}(?:{_COMMA}{_NUMBER})*")
_IN_RUN = re.compile(_NUMBER)
_MAX_CHARS = 20_000


@dataclass(frozen=True, kw_only=True)
class ParsedAnswer:
    """What one answer said."""

    status: AnswerStatus
    """Why there is, or is not, a usable box."""
    box_xyxy: Box | None
    """Usable box in the answer frame, corners sorted, inside the frame; None unless `status.has_box`."""
    box_raw_xyxy: Box | None
    """The four numbers as written, corners unsorted, x before y; also kept for boxes that were refused."""
    spans: Spans | None
    """Character spans (start, end) in the text of the numbers that became x1, y1, x2, y2 (after sorting)."""


@dataclass(frozen=True, kw_only=True)
class Parser:
    """How boxes are found in a text."""

    name: str
    """Short name of the notation; part of the store's fingerprint."""
    version: str
    """Changes whenever other numbers could be found in the same text; part of the store's fingerprint."""
    find: Callable[[str], Sequence[tuple[Box, Spans]]]
    """Text -> the boxes in it, in their order: four numbers each, as written, and the character spans (start, end) of
    their digits, from which the confidence of each number is read. Never raises for any text."""


def _find_quads(text: str) -> list[tuple[Box, Spans]]:
    for pattern in _PATTERNS:
        found = [_quad([match.span(k) for k in (1, 2, 3, 4)], text) for match in pattern.finditer(text)]
        if found:
            return found
    pairs = [spans for spans in _numbers(_POINTS, text) if len(spans) % 4 == 0]
    if pairs:
        return [_quad(spans[k : k + 4], text) for spans in pairs for k in range(0, len(spans), 4)]
    if "[" in text or "(" in text:
        return []
    return [_quad(spans, text) for spans in _numbers(_RUN, text) if len(spans) == 4]


def _numbers(run: re.Pattern[str], text: str) -> list[list[tuple[int, int]]]:
    """The spans of the numbers in each match of `run`."""
    return [
        [number.span() for number in _IN_RUN.finditer(text, *match.span())] for match in run.finditer(text)
    ]


def _quad(spans: list[tuple[int, int]], text: str) -> tuple[Box, Spans]:
    x1, y1, x2, y2 = (float(text[start:end]) for start, end in spans)
    return (x1, y1, x2, y2), (spans[0], spans[1], spans[2], spans[3])


BRACKETS = Parser(name="brackets", version="2", find=_find_quads)
"""The notation of most families: bracketed quadruples, or four bare numbers."""


def parse_answer(
    text: str,
    frame_hw: tuple[int, int],
    finish_reason: str | None = "stop",
    tolerance: float = 0.02,
    unit: float = 1.0,
    parser: Parser = BRACKETS,
    order: Order = "xyxy",
) -> ParsedAnswer:
    """Parse one answer.

    Args:
        text: The answer as generated, special tokens removed.
        frame_hw: Extent (height, width) of the answer frame.
        finish_reason: `"length"` if the token limit ended the answer; anything else counts as a natural end.
        tolerance: How far, as a share of the side, a box may stick out and still count as OK.
        unit: Step of the answer frame; a box with a shorter side is degenerate.
        parser: Finds the boxes.
        order: In which order it finds their numbers.

    Returns:
        The parsed answer; never raises for any text.
    """
    text = text[:_MAX_CHARS]
    if not text.strip():
        return _without_box(AnswerStatus.EMPTY)
    cut = finish_reason == "length"
    quads = [_x_first(*quad, order) for quad in parser.find(text)]
    if not quads:
        if is_looping(text):
            return _without_box(AnswerStatus.REPEATED)
        return _without_box(AnswerStatus.TRUNCATED if cut else AnswerStatus.NO_BOX)
    raw, spans = quads[0]
    if cut and is_looping(text):
        return ParsedAnswer(status=AnswerStatus.REPEATED, box_xyxy=None, box_raw_xyxy=raw, spans=None)
    status, box, spans = _place(raw, spans, frame_hw, tolerance, unit)
    if box is not None and len({quad for quad, _ in quads}) > 1:
        status = AnswerStatus.MULTIPLE
    return ParsedAnswer(
        status=status, box_xyxy=box, box_raw_xyxy=raw, spans=spans if box is not None else None
    )


def _without_box(status: AnswerStatus) -> ParsedAnswer:
    return ParsedAnswer(status=status, box_xyxy=None, box_raw_xyxy=None, spans=None)


def _x_first(numbers: Box, spans: Spans, order: Order) -> tuple[Box, Spans]:
    if order == "xyxy":
        return numbers, spans
    (y1, x1, y2, x2), (sy1, sx1, sy2, sx2) = numbers, spans
    return (x1, y1, x2, y2), (sx1, sy1, sx2, sy2)


def _place(
    raw: Box, spans: Spans, frame_hw: tuple[int, int], tolerance: float, unit: float
) -> tuple[AnswerStatus, Box | None, Spans]:
    """Sort the corners of `raw`, hold it against the frame, clip it."""
    height, width = frame_hw
    x1, y1, x2, y2 = raw
    sx1, sy1, sx2, sy2 = spans
    if x1 > x2:
        x1, x2, sx1, sx2 = x2, x1, sx2, sx1
    if y1 > y2:
        y1, y2, sy1, sy2 = y2, y1, sy2, sy1
    spans = (sx1, sy1, sx2, sy2)
    if x2 - x1 < unit or y2 - y1 < unit:
        return AnswerStatus.DEGENERATE, None, spans
    box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    inside = max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
    if inside < 0.5 * (x2 - x1) * (y2 - y1):
        return AnswerStatus.OUT_OF_RANGE, None, spans
    if box[2] - box[0] < unit or box[3] - box[1] < unit:
        return AnswerStatus.DEGENERATE, None, spans
    outside_x, outside_y = max(-x1, x2 - width), max(-y1, y2 - height)
    if outside_x > tolerance * width or outside_y > tolerance * height:
        return AnswerStatus.CLIPPED, box, spans
    return AnswerStatus.OK, box, spans


def is_looping(text: str, *, min_repeats: int = 4, min_chars: int = 16, max_unit: int = 200) -> bool:
    """Whether the end of `text` is one unit repeated at least `min_repeats` times over at least `min_chars`.

    The last repeat may be cut short. Runs in O(max_unit x len(text)).
    """
    tail = text.rstrip()[-(max_unit * (min_repeats + 1)) :]
    for unit in range(1, min(max_unit, len(tail) // min_repeats) + 1):
        length = unit
        while length < len(tail) and tail[-1 - length] == tail[-1 - length + unit]:
            length += 1
        if length >= max(unit * min_repeats, min_chars):
            return True
    return False
