"""Trackers: refused by name when missing, and given the log's numbers through Accelerate when there."""

import importlib.util
import math

import pytest
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker

from shared.config import config_to_dict
from shared.errors import DataError
from shared.runlog import read_records
from stage2_train.config import TRACKER_NAMES, RuntimeConfig
from stage2_train.trackers import Trackers, flat, open_trackers, require_installed
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config


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


class Refusing(TensorBoardTracker):
    """TensorBoard, with a service's failures."""

    def __init__(self, folder, fails):
        super().__init__("log", folder)
        self.fails = fails

    def start(self):
        super().start()
        if self.fails == "start":
            raise ConnectionError("no route\nto host")

    def log(self, values, step=None, **more):
        if self.fails == "log":
            raise ConnectionError("no route\nto host")
        super().log(values, step=step, **more)


def test_a_service_that_takes_no_run_is_one_line(tmp_path):
    Accelerator(cpu=True)
    with pytest.raises(DataError, match="tensorboard takes no run: no route"):
        Trackers([Refusing(tmp_path, "start")], {})


def test_a_service_that_fails_later_is_left_out_with_one_line(tmp_path, capsys):
    Accelerator(cpu=True)
    good = TensorBoardTracker("good", tmp_path)
    trackers = Trackers([Refusing(tmp_path, "log"), good], {})
    trackers.log(1, "train", {"loss": 0.5})
    trackers.log(2, "train", {"loss": 0.25})
    trackers.close()
    assert capsys.readouterr().err == "tensorboard is left out from here on: no route to host\n"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "good"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == [0.5, 0.25]


def test_weights_and_biases_runs_offline(monkeypatch, tmp_path, capfd):
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    Accelerator(cpu=True)
    trackers = open_trackers(["wandb"], tmp_path, {"seed": 22}, quiet=True)
    trackers.log(1, "train", {"loss": 0.5})
    trackers.close()
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own database layer
def test_settings_and_numbers_arrive_in_mlflow(monkeypatch, tmp_path, mini_root, capfd):
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed: pip install mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    runtime = RuntimeConfig(log_every=1, tensorboard=False, trackers=("mlflow",))
    config = mini_config(mini_root, steps=4, eval_every=2, runtime=runtime)
    train(config, tmp_path / "run", quiet=True)
    assert capfd.readouterr().err == ""
    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'l2l'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {name: str(value) for name, value in flat(config_to_dict(config)).items()}
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    for kind, name in (("train", "loss"), ("val", "oiou_original")):
        arrived = client.get_metric_history(run.info.run_id, f"{kind}/{name}")
        logged = [(record["step"], record[name]) for record in records if record["kind"] == kind]
        assert [(one.step, one.value) for one in arrived] == logged and len(logged) > 1
