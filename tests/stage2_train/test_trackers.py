"""Trackers: refused by name when missing, and given the log's numbers through Accelerate when there."""

import importlib.util
import math

import pytest
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker

from shared.errors import DataError
from stage2_train.config import TRACKER_NAMES, RuntimeConfig
from stage2_train.trackers import Trackers, flat, open_trackers, require_installed


@pytest.mark.parametrize("name", TRACKER_NAMES)
def test_a_missing_package_is_one_line_with_its_install_line(name, monkeypatch, tmp_path):
    monkeypatch.setattr("stage2_train.trackers.find_spec", lambda wanted: None)
    for refuse in (lambda: require_installed([name]), lambda: open_trackers([name], tmp_path, {})):
        with pytest.raises(DataError, match=f"{name} is not installed; pip install {name}$"):
            refuse()


def test_an_unknown_tracker_is_refused():
    with pytest.raises(DataError, match="'tensorbord' is none of wandb, mlflow"):
        RuntimeConfig(trackers=("tensorbord",))


def test_numbers_arrive_through_accelerate(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Accelerator(cpu=True)  # its trackers ask it which process is the main one
    trackers = Trackers(
        [TensorBoardTracker("log", tmp_path)], {"seed": 22, "optim": {"lr": 0.5, "betas": [1, 2]}}
    )
    trackers.log(2, "train", {"loss": 0.25, "broken": math.nan, "note": "text"})
    trackers.log(4, "train", {"loss": 0.125})
    trackers.close()
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(2, 0.25), (4, 0.125)]


def test_settings_are_flattened():
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2]}) == {"a.b": 1, "a.c.d": "None", "e": "[1, 2]"}


@pytest.mark.parametrize("name", TRACKER_NAMES)
def test_a_real_tracker_runs_offline(name, monkeypatch, tmp_path):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install {name}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Accelerator(cpu=True)
    trackers = open_trackers([name], tmp_path / "run", {"seed": 22})
    trackers.log(1, "train", {"loss": 0.5})
    trackers.close()
