"""The parser: one table of answers, then properties that hold for any text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.types import AnswerStatus as S
from stage1_priors.parse import is_looping, parse_answer

FRAME = (100, 200)  # height, width
GOOD = '[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]'
BOX = (10.0, 20.0, 30.0, 40.0)

TABLE = [
    ("well formed", GOOD, "stop", S.OK, BOX),
    ("fenced", f"```json\n{GOOD}\n```", "stop", S.OK, BOX),
    ("object, no list", '{"bbox_2d": [10, 20, 30, 40]}', "stop", S.OK, BOX),
    ("prose around", f"Sure! Here it is: {GOOD}. Anything else?", "stop", S.OK, BOX),
    ("single quotes", "{'bbox': [10, 20, 30, 40]}", "stop", S.OK, BOX),
    ("bare list", "[10,20,30,40]", "stop", S.OK, BOX),
    ("decimals", "[10.0, 20.0, 30.0, 40.0]", "stop", S.OK, BOX),
    ("parentheses", "(10,20),(30,40)", "stop", S.OK, BOX),
    ("nested pairs", "[[10, 20], [30, 40]]", "stop", S.OK, BOX),
    ("two boxes of points", "(10,20),(30,40)(1,2),(30,40)", "stop", S.MULTIPLE, BOX),
    ("three points are no box", "(10,20),(30,40),(50,60)", "stop", S.NO_BOX, None),
    (
        "an outline of five points",
        "[[10, 20], [30, 20], [30, 40], [10, 40], [10, 20]]",
        "stop",
        S.NO_BOX,
        None,
    ),
    ("an odd point apart", "(5, 5) is the centre of (10,20),(30,40)", "stop", S.OK, BOX),
    ("named corners", '{"x1": 10, "y1": 20, "x2": 30, "y2": 40}', "stop", S.OK, BOX),
    ("bare numbers", "The box is 10, 20, 30, 40.", "stop", S.OK, BOX),
    ("json never closed", '[{"bbox_2d": [10, 20, 30, 40], "label": "a very long', "length", S.OK, BOX),
    ("swapped x", "[30, 20, 10, 40]", "stop", S.OK, BOX),
    ("swapped both", "[30, 40, 10, 20]", "stop", S.OK, BOX),
    ("same box twice", f"{GOOD} {GOOD}", "stop", S.OK, BOX),
    ("two boxes", '[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [1, 2, 30, 40]}]', "stop", S.MULTIPLE, BOX),
    ("keyed box wins over a list", "[1, 2, 3, 4] " + GOOD, "stop", S.OK, BOX),
    ("sticks out within tolerance", "[10, 20, 203, 40]", "stop", S.OK, (10.0, 20.0, 200.0, 40.0)),
    ("sticks out", "[150, 20, 240, 40]", "stop", S.CLIPPED, (150.0, 20.0, 200.0, 40.0)),
    ("negative corner", "[-10, 20, 30, 40]", "stop", S.CLIPPED, (0.0, 20.0, 30.0, 40.0)),
    ("sticks out below", "[10, 60, 30, 120]", "stop", S.CLIPPED, (10.0, 60.0, 30.0, 100.0)),
    ("sticks out above", "[10, -30, 30, 40]", "stop", S.CLIPPED, (10.0, 0.0, 30.0, 40.0)),
    ("half outside", "[190, 20, 210, 40]", "stop", S.CLIPPED, (190.0, 20.0, 200.0, 40.0)),
    ("one unit wide", "[10, 20, 11, 40]", "stop", S.OK, (10.0, 20.0, 11.0, 40.0)),
    ("less than a unit inside", "[199.5, 20, 200.5, 40]", "stop", S.DEGENERATE, None),
    ("a box again and again, to the end", '{"bbox_2d": [10, 20, 30, 40]}, ' * 9, "stop", S.OK, BOX),
    ("mostly outside", "[190, 20, 240, 40]", "stop", S.OUT_OF_RANGE, None),
    ("another frame", '[{"bbox_2d": [512, 300, 800, 700]}]', "stop", S.OUT_OF_RANGE, None),
    ("huge numbers", "[1, 2, 999999999, 999999999]", "stop", S.OUT_OF_RANGE, None),
    ("relative 0 to 1", "[0.1, 0.2, 0.3, 0.4]", "stop", S.DEGENERATE, None),
    ("no width", "[10, 20, 10, 40]", "stop", S.DEGENERATE, None),
    ("all zero", "[0, 0, 0, 0]", "stop", S.DEGENERATE, None),
    ("empty", "", "stop", S.EMPTY, None),
    ("white space", " \n\t ", "stop", S.EMPTY, None),
    ("refusal", "I'm sorry, but I can't help with that.", "stop", S.NO_BOX, None),
    ("none found", '[{"bbox_2d": [], "label": "cat"}]', "stop", S.NO_BOX, None),
    ("three numbers", "[10, 20, 30]", "stop", S.NO_BOX, None),
    ("five numbers", "[10, 20, 30, 40, 50]", "stop", S.NO_BOX, None),
    ("five bare numbers", "10, 20, 30, 40, 50", "stop", S.NO_BOX, None),
    ("too many digits", "[1, 2, 99999999999999999999, 4]", "stop", S.NO_BOX, None),
    ("numbers are text", '[{"bbox_2d": ["a", "b", "c", "d"]}]', "stop", S.NO_BOX, None),
    ("code is not run", '[__import__("os").system("exit 3"), 1, 2, 3]', "stop", S.NO_BOX, None),
    ("cut in a number", '[{"bbox_2d": [10, 20, 3', "length", S.TRUNCATED, None),
    ("cut in prose", "The object you are asking about is", "length", S.TRUNCATED, None),
    ("digits loop", "[1" + "1" * 60, "length", S.REPEATED, None),
    ("phrase loop", "the cat " * 12, "stop", S.REPEATED, None),
    ("box loop", '{"bbox_2d": [10, 20, 30, 40]}, ' * 9, "length", S.REPEATED, None),
]


@pytest.mark.parametrize(
    ("text", "finish", "status", "box"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_table(text, finish, status, box):
    parsed = parse_answer(text, FRAME, finish)
    assert (parsed.status, parsed.box_xyxy) == (status, box)
    assert (parsed.box_xyxy is None) == (parsed.spans is None) == (not parsed.status.has_box)


def test_every_answer_status_of_the_parser_is_in_the_table():
    made_elsewhere = {S.IMAGE_ERROR, S.ENGINE_ERROR, S.IMPORTED, S.NOT_IMPORTED}
    assert {row[3] for row in TABLE} == set(S) - made_elsewhere


def test_spans_follow_the_sorted_corners():
    text = "[30, 40, 10, 20]"
    spans = parse_answer(text, FRAME).spans
    assert [text[start:end] for start, end in spans] == ["10", "20", "30", "40"]


def test_refused_boxes_keep_their_raw_numbers():
    parsed = parse_answer("[512, 300, 800, 700]", FRAME)
    assert parsed.box_raw_xyxy == (512.0, 300.0, 800.0, 700.0)


def test_raw_numbers_keep_the_order_of_the_answer():
    assert parse_answer("[30, 40, 10, 20]", FRAME).box_raw_xyxy == (30.0, 40.0, 10.0, 20.0)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='[](){}",:.0123456789- bx_\n') | st.text(), st.sampled_from(["stop", "length", None]))
def test_never_raises_and_boxes_are_inside_the_frame(text, finish):
    parsed = parse_answer(text, FRAME, finish)
    if parsed.box_xyxy is not None:
        x1, y1, x2, y2 = parsed.box_xyxy
        assert 0 <= x1 < x2 <= 200 and 0 <= y1 < y2 <= 100


@pytest.mark.parametrize(
    "unit", [" ", "1 ", "[", "1,", "[1,", "[ ", "x1=1,", "bbox", "(1,2),", "-", "1.", "\n,"]
)
def test_long_junk_is_parsed_in_linear_time(unit):
    text = (unit * 20_000)[:20_000]
    started = time.process_time()
    parse_answer(text, FRAME, "length")
    assert time.process_time() - started < 2.0


def test_looping():
    assert is_looping("abc " * 6)
    assert is_looping("start, then " + "[1, 2], " * 5 + "[1,")
    assert not is_looping("abc " * 3)
    assert not is_looping("aaaa")
    assert not is_looping(GOOD)
