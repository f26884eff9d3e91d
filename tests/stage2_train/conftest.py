"""Shared miniature data: written once per session, never changed by a test."""

from pathlib import Path

import pytest
import torch

from stage2_train.config import RuntimeConfig
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config, write_all


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="session")
def mini_run(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps; tests that write into it copy it first."""
    out = tmp_path_factory.mktemp("run") / "l2l"
    runtime = RuntimeConfig(log_every=1, tensorboard=False)
    train(
        mini_config(mini_root, steps=2, runtime=runtime),
        out,
        recipe="mini",
        overrides=["steps=2", "data.root=/home/me/x"],
        quiet=True,
    )
    return out


@pytest.fixture(autouse=True)
def _keep_torch_state() -> object:
    """Training sets torch's global random state; keep that from other tests."""
    with torch.random.fork_rng(devices=[]):
        yield
