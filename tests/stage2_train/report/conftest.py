"""Fixtures of the report's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stage2_train.report.fake_runs import World, write_run, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("report-world"))


@pytest.fixture
def make_run(world: World, tmp_path: Path) -> Callable[..., Path]:
    """Write a run below `tmp_path` and return its folder."""

    def make(name: str, **options: Any) -> Path:
        return write_run(tmp_path / "runs" / name, world, **options)

    return make
