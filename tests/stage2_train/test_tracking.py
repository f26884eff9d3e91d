"""What a tracker is told, and what a missing one gets; W&B itself runs where it is installed."""

import json
from pathlib import Path
from typing import Any, ClassVar

import accelerate.tracking
import pytest
from accelerate.utils import LoggerType

from shared.errors import DataError
from shared.runlog import read_records
from stage2_train import tracking
from stage2_train.config import RuntimeConfig
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config


class Recorder(accelerate.tracking.GeneralTracker):
    """Takes W&B's place in Accelerate and keeps what it is told."""

    name = "wandb"
    requires_logging_directory = False
    told: ClassVar[list[tuple[int, dict[str, Any]]]] = []
    settings: ClassVar[dict[str, Any]] = {}
    closed: ClassVar[int] = 0

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        self.run_name, self.options = run_name, options

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        Recorder.settings.update(values)

    def log(self, values: dict[str, Any], step: int | None = None, **rest: Any) -> None:
        assert step is not None
        Recorder.told.append((step, values))

    def finish(self) -> None:
        Recorder.closed += 1


def run(mini_root: Path, out: Path, tracker: str) -> None:
    runtime = RuntimeConfig(tensorboard=False, log_every=1, tracker=tracker)
    train(mini_config(mini_root, steps=2, runtime=runtime), out, recipe="mini", quiet=True)


def test_a_tracker_is_told_what_the_log_is(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.WANDB])
    monkeypatch.setattr("stage2_train.train.require_installed", lambda tracker: None)
    run(mini_root, tmp_path / "run", "wandb")
    logged = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [step for step, _ in Recorder.told] == [record["step"] for record in logged]
    for (_, values), record in zip(Recorder.told, logged, strict=True):
        for name, value in values.items():
            assert record[name.removeprefix(f"{record['kind']}/")] == pytest.approx(value)
    assert Recorder.settings["optim.name"] and Recorder.closed == 1
    json.dumps(Recorder.settings)


def test_one_that_is_not_installed_is_named_before_anything_is_written(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install mlflow"):
        run(mini_root, tmp_path / "run", "mlflow")
    assert not (tmp_path / "run").exists()


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(DataError, match="not wandb or mlflow"):
        RuntimeConfig(tracker="paper")  # type: ignore[arg-type]


def test_wandb_offline(mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(mini_root, tmp_path / "run", "wandb")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
