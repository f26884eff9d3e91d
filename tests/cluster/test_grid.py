"""A grid of two runs as an array of two jobs that work at the same time ends in one table."""

import json

import pytest

from tests.cluster.slurm import ENDED, wait_for
from tests.stage2_train.miniature import write_data, write_priors

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

GRID = """
reference = "supervised"
fractions = [0.25]
seeds = [1]
splits = ["val"]
set = [
    "data.root={root}/data", "cache_root={root}/stores", "steps=4", "batch_labelled=4", "batch_unlabelled=4",
    "segmentor.weights=none", "segmentor.decoder_width=8", "eval_every=0", "alarm.patience=0",
    "runtime.tensorboard=false",
]
[methods.supervised]
recipe = "supervised-embedded"
[methods.l2l]
recipe = "embedded"
"""
CELLS = ["supervised/fraction-0.25/seed-1", "l2l/fraction-0.25/seed-1"]


def test_two_runs_at_once_end_in_one_table(slurm, site, l2l, tmp_path):
    dataset = write_data(tmp_path / "data")
    write_priors(tmp_path / "stores" / "refshapes.test.zarr", dataset)
    grid, out = tmp_path / "grid.toml", tmp_path / "out"
    grid.write_text(GRID.format(root=tmp_path))
    (array,) = l2l("submit", "ablate", grid, "--out", out, "--site", site)["jobs"]
    assert array["tasks"] == [0, 1]
    running = [f"{array['job']}_{task}" for task in array["tasks"]]
    wait_for(lambda: {slurm.state(task) for task in running} == {"RUNNING"}, "both work at once", 60)
    for task in running:
        slurm.wait_for_state(task, ENDED, 300)
        assert slurm.state(task) == "COMPLETED", l2l("status", out)
    status = l2l("status", out)
    assert status["state"] == "done" and status["progress"]["cells"] == dict.fromkeys(CELLS, "done")

    table = json.loads((out / "table.json").read_text())
    assert table["counts"] == {"done": 2} and table["unfinished"] == []
    assert {row["arm"] for row in table["rows"]} == {"supervised", "l2l"}
    assert "cells: 2 done" in (out / "table.txt").read_text()
    for cell in CELLS:
        assert json.loads((out / cell / "done.json").read_text())["step"] == 4
    assert not [*out.rglob(".*.writing"), *out.rglob(".*.partial")]
