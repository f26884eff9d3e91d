"""One real batch and one network for all methods."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stage2_train.batch import Batch
from stage2_train.config import TrainConfig
from stage2_train.segmentor import ReferringSegmentor
from tests.stage2_train.miniature import batch_of, model_of


@pytest.fixture(scope="session")
def read_batch(mini_root: Path) -> Callable[..., Batch]:
    return lambda config, key=0: batch_of(config, key)


@pytest.fixture
def make_model() -> Callable[[TrainConfig], ReferringSegmentor]:
    return model_of
