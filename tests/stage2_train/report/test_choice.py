"""Which sentences the gallery shows, and why each."""

import pytest

from stage2_train.report.choice import TAGS, choose


def rows_of(num):
    return {f"s{n}": {"iou_original": n / num, "prior_iou_original": 0.5} for n in range(num)}


@pytest.mark.parametrize(
    ("num", "tags"),
    [(1, ["best"]), (3, ["best", "best", "worst"]), (6, ["best"] * 3 + ["worst"] * 3)],
)
def test_of_few_sentences_each_has_one_reason(num, tags):
    found = choose([rows_of(num)], "val", 3)
    assert [choice.tags for choice in found] == [(tag,) for tag in tags]


def test_of_many_every_reason_is_there_and_each_sentence_once():
    found = choose([rows_of(200)], "val", 6)
    assert {tag for choice in found for tag in choice.tags} >= set(TAGS[:3])
    assert len({choice.sample_id for choice in found}) == len(found)
    assert all(len(choice.tags) == 1 for choice in found)
    assert [choice.tags[0] for choice in found].count("best") == 6
