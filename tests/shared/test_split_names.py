"""Names of splits: their order and their usual form."""

import pytest

from shared.split_names import SPLIT_ORDER, ordered_splits, usual_split


def test_usual_splits_come_first_and_others_by_name():
    names = ["zebra", "testB", "ant", "test", "val", "train", "testA"]
    assert ordered_splits(names) == ("train", "val", "testA", "testB", "test", "ant", "zebra")


@pytest.mark.parametrize(
    ("name", "usual"),
    [("TRAIN ", "train"), ("Training", "train"), (" dev", "val"), ("validation", "val"), ("testa", "testA"),
     ("valid", "val"), ("Eval", "val"), ("TEST", "test"), (" Held-out ", "Held-out"), ("minival", "minival")],
)  # fmt: skip
def test_the_usual_name_of_a_split(name, usual):
    assert usual_split(name) == usual == usual_split(usual)
    assert all(usual_split(known) == known for known in SPLIT_ORDER)
