"""A small drawn data set and a configuration of stage 1 that needs no model."""

import pytest

from shared.config import DataConfig
from shared.synth.refshapes import write_refshapes
from stage1_priors.config import CanaryConfig, EngineConfig, MllmConfig, PriorsConfig, ProposerConfig
from tests.stage1_priors.fake_engine import write_model_folder


@pytest.fixture(scope="session")
def refshapes_root(tmp_path_factory):
    """A drawn data set of about 150 images and 800 sentences: two shards."""
    root = tmp_path_factory.mktemp("refshapes")
    write_refshapes(root, num_train_images=120, seed=5, progress=False)
    return root


@pytest.fixture
def config(tmp_path, refshapes_root):
    """All splits of the drawn data set, a model folder no engine opens, no canary, no second process."""
    return PriorsConfig(
        data=DataConfig(root=str(refshapes_root), dataset="refshapes"),
        model=MllmConfig(path=str(write_model_folder(tmp_path / "model")), dtype="float32"),
        splits=("train", "val", "testA", "testB"),
        engine=EngineConfig(chunk_rows=100),
        proposer=ProposerConfig(grid=16, own_process=False),
        canary=CanaryConfig(mode="skip"),
        cache_root=str(tmp_path / "cache"),
    )
