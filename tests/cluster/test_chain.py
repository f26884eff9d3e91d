"""A training and a grid are submitted while the store that they read is still being written."""

import json

import pytest

from tests.cluster.drawn import priors_recipe, settings
from tests.cluster.slurm import ENDED
from tests.stage2_train.miniature import write_data

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

GRID = """
reference = "l2l"
recipe = "embedded"
fractions = [0.25]
seeds = [1]
set = [{changes}]
[methods.l2l]
"""


@pytest.fixture
def held(tmp_path):
    """A site whose jobs begin when they are told to."""
    file = tmp_path / "held.toml"
    file.write_text('gpus_per_node = 0\ncpus_per_process = 1\nsbatch = ["--hold"]\n')
    return file


def test_both_stages_are_in_the_queue_at_once(slurm, site, held, l2l, tmp_path):
    data, stores = tmp_path / "data", tmp_path / "stores"
    write_data(data)
    values = {
        "data.root": data,
        "steps": 4,
        "batch_labelled": 4,
        "batch_unlabelled": 4,
        "segmentor.weights": "none",
        "segmentor.decoder_width": 8,
        "eval_every": 0,
        "alarm.patience": 0,
        "runtime.tensorboard": "false",
    }
    recipe = priors_recipe(data, stores, "train,val")
    answer = l2l("submit", "priors", *recipe, "--tasks", 1, "--site", held)
    array, verify = answer["jobs"]
    store, run, out = tmp_path / answer["target"], tmp_path / "run", tmp_path / "out"
    assert not store.exists()

    chained = ["--after", store, "--site", site]
    training = [
        "train",
        "embedded",
        *settings({**values, "fraction": 0.25}),
        "--out",
        run,
        "--processes",
        1,
        "--split",
        "val",
        *chained,
    ]
    calls = [job["sbatch"][0] for job in l2l("submit", *training, "--dry-run")["jobs"]]
    assert f"--dependency=afterok:{array['job']}:{verify['job']}" in calls[0]
    assert "--dependency=afterok:<train>" in calls[1]
    train, score = l2l("submit", *training)["jobs"]
    grid = tmp_path / "grid.toml"
    grid.write_text(GRID.format(changes=", ".join(f'"{name}={value}"' for name, value in values.items())))
    (ablate,) = l2l("submit", "ablate", grid, "--out", out, *chained)["jobs"]
    assert slurm.state(train["job"]) == "PENDING" and l2l("status", run)["tasks"][0]["state"] == "waiting"

    for job in (array, verify):
        slurm.call("scontrol", "release", job["job"])
    for job in (verify, train, score, ablate):
        slurm.wait_for_state(job["job"], ENDED, 400)
        assert slurm.state(job["job"]) == "COMPLETED", l2l("status", run)
    assert l2l("status", run)["state"] == "done"
    assert json.loads((run / "config.json").read_text())["store"]["path"] == str(store)
    assert json.loads((out / "table.json").read_text())["counts"] == {"done": 1}
    assert json.loads((run / "eval" / "val.json").read_text())["prior"]["original"]["oiou"] > 0
    assert "--after" not in (run / "jobs" / "train.sh").read_text()

    again = l2l("submit", *training, "--out", tmp_path / "again")["jobs"]
    assert slurm.state(again[0]["job"]) != "CANCELLED", "the store is there: nothing to wait for"


def test_what_waits_is_cancelled_with_what_it_waits_for(slurm, site, held, l2l, tmp_path):
    data = tmp_path / "data"
    write_data(data)
    recipe = priors_recipe(data, tmp_path / "stores", "train")
    answer = l2l("submit", "priors", *recipe, "--tasks", 1, "--site", held)
    store, run = tmp_path / answer["target"], tmp_path / "run"
    values = {"data.root": data, "steps": 4, "eval_every": 0, "fraction": 0.25}
    training = ["train", "embedded", *settings(values), "--out", run, "--after", store, "--processes", 1]
    train, score = l2l("submit", *training, "--split", "testA", "--site", site)["jobs"]
    for job in answer["jobs"]:
        slurm.call("scancel", job["job"])
    for job in (train, score):
        slurm.wait_for_state(job["job"], ENDED, 60)
        assert slurm.state(job["job"]) == "CANCELLED"
    status = l2l("status", run)
    assert status["state"] == "cancelled", status
