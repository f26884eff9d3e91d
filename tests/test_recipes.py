"""The recipes of the two stages meet at the store: what one writes, the other looks for."""

import pytest

from stage1_priors.recipes import RECIPES as PRIORS
from stage2_train.recipes import RECIPES as TRAIN


@pytest.mark.parametrize("priors,train", [("embedded", "embedded"), ("refcoco-qwen2.5-vl-7b", "paper")])
def test_training_looks_where_priors_are_written(priors, train):
    written, read = PRIORS[priors](), TRAIN[train]()
    assert written.cache_root == read.cache_root
    assert written.data == read.data
    assert {"train", read.val_split} <= set(written.splits)
