"""The held-out score's own arithmetic."""

import numpy as np
import pytest

from stage1_priors.tiny.data import ask
from stage1_priors.tiny.score import box_iou, parse_box, summarise
from stage1_priors.tiny.tokenizer import answer_text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no box",
        "[]",
        '{"bbox_2d": [1, 2, 3, 4]}',
        '[{"bbox_2d": [1, 2, 3]}]',
        '[{"bbox_2d": [01, 2, 3, 4]}]',
        '[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [1, 2, 3, 4]}]',
        '[{"bbox_2d": [1, 2, 3, 4]',
        '[{"bbox_2d": "1234"}]',
    ],
)
def test_malformed_answers_have_no_box(text: str) -> None:
    assert parse_box(text) is None


def test_answers_parse() -> None:
    box = parse_box(answer_text((1, 2, 30, 112), "star"))
    assert box is not None and box.tolist() == [1, 2, 30, 112]


def test_iou_by_hand() -> None:
    first = np.array([0.0, 0.0, 4.0, 4.0])
    assert box_iou(first, first) == 1
    assert box_iou(first, np.array([2.0, 0.0, 6.0, 4.0])) == pytest.approx(8 / 24)
    assert box_iou(first, np.array([5.0, 5.0, 9.0, 9.0])) == 0
    assert box_iou(first, np.array([3.0, 3.0, 1.0, 1.0])) == 0  # upside down


def test_summary_counts_unparsed_answers_as_misses() -> None:
    scenes = [ask("test", 5, index, 1) for index in range(4)]
    right = [answer_text(np.rint(s.boxes_K4[s.questions[0].target]).astype(int), "star") for s in scenes]
    score = summarise(scenes, [*right[:2], "nothing", '[{"bbox_2d": [0, 0, 1, 1]}]'])
    assert (score.num, score.accuracy, score.parse_rate) == (4, 0.5, 0.75)
    assert sum(score.num_by_kind.values()) == 4 and 0.4 < score.mean_iou <= 0.51
