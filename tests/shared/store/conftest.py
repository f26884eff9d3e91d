"""A small prior store whose every row is a pure function of its number."""

from pathlib import Path

import pytest

from tests.shared.store import store_factory


@pytest.fixture
def empty_store(tmp_path: Path) -> Path:
    """A store with its static fields and no finished shard."""
    return store_factory.create(tmp_path / "a.zarr")


@pytest.fixture
def full_store(empty_store: Path) -> Path:
    """A finished store."""
    return store_factory.fill(empty_store)
