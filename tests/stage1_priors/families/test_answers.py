"""Answers in the formats each family gives, and what becomes of them: a status and a box of the original image."""

import math

import numpy as np
import pytest
from PIL import Image

from shared.types import STATUS_BY_CODE
from shared.types import AnswerStatus as S
from stage1_priors.answers import box_iou, make_request, read_answers
from stage1_priors.engine import Answer
from stage1_priors.families import FAMILIES, QWEN2_5_VL, SizeRules

SIZE_HW = (224, 448)
"""Size of the image the model saw."""
BOX = (0.25, 0.125, 0.5, 0.75)
"""The object, x1 y1 x2 y2 as shares of the image."""


def qwen(box, fence=False):
    text = f'[{{"bbox_2d": [{box}], "label": "red star"}}]'
    return f"```json\n{text}\n```" if fence else text


QWEN2_5 = "112, 28, 224, 168"
QWEN3 = "250, 125, 500, 750"
LLAVA = "0.25, 0.125, 0.5, 0.75"
FULL_WIDTH = (0.25, 0.125, 1.0, 0.75)
LOOP = '{"bbox_2d": [], "label": "star"}, ' * 8

TABLE = {
    "qwen2_5_vl": [
        ("well formed", qwen(QWEN2_5), "stop", S.OK, BOX),
        ("fenced JSON", qwen(QWEN2_5, fence=True), "stop", S.OK, BOX),
        ("prose around", f"The red star is here: {qwen(QWEN2_5)}. I hope this helps!", "stop", S.OK, BOX),
        (
            "several boxes",
            f'[{{"bbox_2d": [{QWEN2_5}]}}, {{"bbox_2d": [0, 0, 99, 99]}}]',
            "stop",
            S.MULTIPLE,
            BOX,
        ),
        ("swapped corners", qwen("224, 168, 112, 28"), "stop", S.OK, BOX),
        ("sticks out", qwen("112, 28, 480, 168"), "stop", S.CLIPPED, FULL_WIDTH),
        ("thousandths", qwen("600, 125, 900, 750"), "stop", S.OUT_OF_RANGE, None),
        ("shares", qwen(LLAVA), "stop", S.DEGENERATE, None),
        ("truncated", qwen(QWEN2_5)[:24], "length", S.TRUNCATED, None),
        ("looping", LOOP, "length", S.REPEATED, None),
        ("refusal", "There is no red star in the image.", "stop", S.NO_BOX, None),
        ("no object", "[]", "stop", S.NO_BOX, None),
        ("empty", "", "stop", S.EMPTY, None),
    ],
    "qwen3_vl": [
        ("well formed", qwen(QWEN3), "stop", S.OK, BOX),
        ("fenced JSON", qwen(QWEN3, fence=True), "stop", S.OK, BOX),
        (
            "tabs and lines",
            f'```json\n[\n\t{{"bbox_2d": [{QWEN3}], "label": "star"}}\n]\n```',
            "stop",
            S.OK,
            BOX,
        ),
        ("object, no list", f'{{"bbox_2d": [{QWEN3}]}}', "stop", S.OK, BOX),
        ("box tokens", "<|box_start|>(250,125),(500,750)<|box_end|>", "stop", S.OK, BOX),
        ("prose around", f"Sure, here is the JSON:\n{qwen(QWEN3, fence=True)}", "stop", S.OK, BOX),
        ("thought first", f"<think>\nIt is at the left.\n</think>\n\n{qwen(QWEN3)}", "stop", S.OK, BOX),
        (
            "several boxes",
            f'[{{"bbox_2d": [{QWEN3}]}}, {{"bbox_2d": [0, 0, 99, 99]}}]',
            "stop",
            S.MULTIPLE,
            BOX,
        ),
        ("swapped corners", qwen("500, 750, 250, 125"), "stop", S.OK, BOX),
        ("up to the edge", qwen("250, 125, 1000, 750"), "stop", S.OK, FULL_WIDTH),
        ("sticks out", qwen("250, 125, 1100, 750"), "stop", S.CLIPPED, FULL_WIDTH),
        ("pixels of a large image", qwen("1120, 280, 2240, 1680"), "stop", S.OUT_OF_RANGE, None),
        ("shares", qwen(LLAVA), "stop", S.DEGENERATE, None),
        ("truncated", qwen(QWEN3)[:26], "length", S.TRUNCATED, None),
        ("looping", LOOP, "length", S.REPEATED, None),
        ("refusal", "I can't find a red star in this image.", "stop", S.NO_BOX, None),
        ("a point", '[{"point_2d": [250, 125], "label": "red star"}]', "stop", S.NO_BOX, None),
        ("empty", "\n", "stop", S.EMPTY, None),
    ],
    "internvl": [
        ("well formed", f"<ref>red star</ref><box>[[{QWEN3}]]</box>", "stop", S.OK, BOX),
        ("tags left out", f"red star[[{QWEN3}]]", "stop", S.OK, BOX),
        ("one pair of brackets", f"<box>[{QWEN3}]</box>", "stop", S.OK, BOX),
        ("fenced JSON", qwen(QWEN3, fence=True), "stop", S.OK, BOX),
        ("prose around", f"The region is <box>[[{QWEN3}]]</box>, on the left.", "stop", S.OK, BOX),
        ("several boxes", f"red star[[{QWEN3}], [0, 0, 99, 99]]", "stop", S.MULTIPLE, BOX),
        ("two answers", f"star[[{QWEN3}]] star[[0, 0, 99, 99]]", "stop", S.MULTIPLE, BOX),
        ("swapped corners", "red star[[500, 750, 250, 125]]", "stop", S.OK, BOX),
        ("sticks out", "red star[[250, 125, 1100, 750]]", "stop", S.CLIPPED, FULL_WIDTH),
        ("pixels of a large image", "red star[[1120, 280, 2240, 1680]]", "stop", S.OUT_OF_RANGE, None),
        ("shares", f"red star[[{LLAVA}]]", "stop", S.DEGENERATE, None),
        ("truncated", "<ref>red star</ref><box>[[250, 125, 50", "length", S.TRUNCATED, None),
        ("cut before the bracket", "red star[[250, 125, 500, 75", "length", S.TRUNCATED, None),
        ("looping", "<ref>red star</ref>" * 9, "length", S.REPEATED, None),
        ("refusal", "Sorry, the image does not show that.", "stop", S.NO_BOX, None),
        ("no numbers", "<ref>red star</ref><box>[[]]</box>", "stop", S.NO_BOX, None),
        ("empty", "", "stop", S.EMPTY, None),
    ],
    "llava_onevision": [
        ("well formed", f"[{LLAVA}]", "stop", S.OK, BOX),
        ("two decimals", "[0.25, 0.12, 0.50, 0.75]", "stop", S.OK, (0.25, 0.12, 0.5, 0.75)),
        ("fenced JSON", f'```json\n{{"bbox": [{LLAVA}]}}\n```', "stop", S.OK, BOX),
        ("prose around", f"The bounding box is [{LLAVA}].", "stop", S.OK, BOX),
        ("no brackets", LLAVA, "stop", S.OK, BOX),
        ("several boxes", f"[{LLAVA}] and [0.0, 0.0, 0.1, 0.1]", "stop", S.MULTIPLE, BOX),
        ("swapped corners", "[0.5, 0.75, 0.25, 0.125]", "stop", S.OK, BOX),
        ("the whole image", "[0, 0, 1, 1]", "stop", S.OK, (0.0, 0.0, 1.0, 1.0)),
        ("rounded up", "[0.25, 0.125, 1.01, 0.75]", "stop", S.OK, FULL_WIDTH),
        ("sticks out", "[0.25, 0.125, 1.2, 0.75]", "stop", S.CLIPPED, FULL_WIDTH),
        ("narrow, but a box", "[0.25, 0.125, 0.26, 0.75]", "stop", S.OK, (0.25, 0.125, 0.26, 0.75)),
        ("pixels", f"[{QWEN2_5}]", "stop", S.OUT_OF_RANGE, None),
        ("no width", "[0.25, 0.125, 0.25, 0.75]", "stop", S.DEGENERATE, None),
        ("truncated", "[0.25, 0.125, 0.", "length", S.TRUNCATED, None),
        ("cut in the last number", "[0.25, 0.125, 0.5, 0.7", "length", S.TRUNCATED, None),
        ("looping", "0.25, " * 12, "length", S.REPEATED, None),
        ("refusal", "I am unable to locate it.", "stop", S.NO_BOX, None),
        ("empty", " ", "stop", S.EMPTY, None),
    ],
}


def read(name, text, finish="stop"):
    answer = Answer(text=text, finish_reason=finish, num_tokens=1)
    return read_answers([answer], np.array([SIZE_HW]), FAMILIES[name], clip_tolerance=0.02)


@pytest.mark.parametrize(
    ("name", "text", "finish", "status", "box"),
    [(name, *row[1:]) for name, rows in TABLE.items() for row in rows],
    ids=[f"{name}: {row[0]}" for name, rows in TABLE.items() for row in rows],
)
def test_table(name, text, finish, status, box):
    rows = read(name, text, finish)
    assert STATUS_BY_CODE[int(rows.status_B[0])] is status and rows.raw_text_B == (text,)
    want = np.full(4, np.nan) if box is None else np.array(box)
    np.testing.assert_allclose(rows.box_xyxy_norm_B4[0], want, atol=1e-6)


KINDS = {
    "well formed", "fenced JSON", "prose around", "several boxes", "swapped corners", "truncated", "looping", "refusal",
    "empty",
}  # fmt: skip
"""What every family must have in the table, besides every status."""


def test_the_table_covers_every_family_kind_and_status():
    assert {family.name for family in FAMILIES.values()} == set(TABLE)
    assert all({row[0] for row in rows} >= KINDS for rows in TABLE.values())
    no_answers = {S.IMAGE_ERROR, S.ENGINE_ERROR, S.IMPORTED, S.NOT_IMPORTED}
    for rows in TABLE.values():
        assert {row[3] for row in rows} == set(S) - no_answers


@pytest.mark.parametrize("name", TABLE)
def test_raw_numbers_stay_in_the_familys_own_frame(name):
    rows = read(name, TABLE[name][0][1])
    numbers = {"qwen2_5_vl": QWEN2_5, "llava_onevision": LLAVA}.get(name, QWEN3)
    np.testing.assert_allclose(rows.box_raw_xyxy_B4[0], [float(part) for part in numbers.split(",")])
    assert math.isnan(rows.confidence_B[0])


def test_raw_numbers_of_a_box_that_was_cut_are_as_they_were_written():
    rows = read("qwen3_vl", qwen("250, 125, 1100, 750"))
    assert rows.box_raw_xyxy_B4[0].tolist() == [250, 125, 1100, 750]


def test_rows_without_an_answer_say_why():
    answers = [
        None,
        Answer(text="", error="the prompt is too long", num_tokens=7),
        Answer(text=qwen(QWEN3), finish_reason="stop", num_tokens=5),
    ]
    rows = read_answers(
        answers,
        np.array([(0, 0), SIZE_HW, SIZE_HW]),
        FAMILIES["qwen3_vl"],
        clip_tolerance=0.02,
        image_errors=["cannot be read", "", ""],
    )
    assert [STATUS_BY_CODE[code] for code in rows.status_B.tolist()] == [S.IMAGE_ERROR, S.ENGINE_ERROR, S.OK]
    assert rows.raw_text_B == ("cannot be read", "the prompt is too long", qwen(QWEN3))
    assert rows.num_tokens_B.tolist() == [0, 7, 5]
    assert np.isfinite(rows.box_xyxy_norm_B4).all(1).tolist() == [False, False, True]


def test_overlap_of_boxes_by_hand():
    first = [(0, 0, 2, 1), (0, 0, 1, 1), (0, 0, 1, 1), (0, 0, 0, 1), (np.nan,) * 4]
    second = [(1, 0, 3, 1), (2, 2, 3, 3), (0, 2, 1, 3), (0, 0, 0, 1), (0, 0, 1, 1)]
    np.testing.assert_allclose(box_iou(np.array(first), np.array(second)), [1 / 3, 0, 0, 0, 0])


def test_the_model_sees_a_wide_image_wide_and_samples_have_seeds_of_their_own():
    rules = SizeRules(
        factor=28, min_pixels=784, max_pixels=10**6, processor_min_pixels=784, processor_max_pixels=10**6
    )
    image = Image.new("RGB", (300, 100))
    one, other = (make_request(image, "a star", QWEN2_5_VL, rules, name) for name in ("a", "b"))
    assert one.image.size == (308, 112) and one.num_image_tokens == 44
    assert one.seed == make_request(image, "a cat", QWEN2_5_VL, rules, "a").seed != other.seed
