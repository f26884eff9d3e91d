"""Shared miniature data: written once per session, never changed by a test."""

from pathlib import Path

import pytest
import torch

from tests.stage2_train.miniature import write_all


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("mini"))


@pytest.fixture(autouse=True)
def _keep_torch_state() -> object:
    """Training sets torch's global random state; keep that from other tests."""
    with torch.random.fork_rng(devices=[]):
        yield
