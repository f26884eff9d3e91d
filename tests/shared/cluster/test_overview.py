"""A folder of runs, grids and stores, a line each."""

import json

import pytest

from shared.cluster.overview import overview_of
from shared.cluster.status import format_status, status_of
from shared.errors import DataError


def test_a_folder_of_products_is_a_line_each(tmp_path):
    runs = tmp_path / "runs"
    for name, done in (("one", True), ("two", False)):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text(json.dumps({"config": {"steps": 9}}))
        if done:
            (runs / name / "done.json").write_text("{}")
    (runs / "grid").mkdir()
    (runs / "grid" / "grid.json").write_text(json.dumps({"cells": ["a/fraction-0.1/seed-1"]}))
    (runs / "notes").mkdir()
    (runs / "notes.txt").write_text("")
    found = overview_of(runs)
    assert (found["kind"], found["state"]) == ("folder", "unfinished")
    assert found["progress"]["holds"] == {
        "grid": "grid, unfinished, runs 0 of 1 done",
        "one": "run, done, steps 0 of 9",
        "two": "run, unfinished, steps 0 of 9",
    }
    assert "    two: run, unfinished, steps 0 of 9" in format_status(found).splitlines()
    assert overview_of(runs / "one") == status_of(runs / "one")
    (runs / "two" / "config.json").write_text("{")
    found = overview_of(runs)
    assert found["state"] == "failed" and "two/config.json: damaged" in found["progress"]["holds"]["two"]


def test_folders_of_a_folder_are_looked_into(tmp_path):
    for name in ("runs/study/one", "runs/two", "runs/a/b/too-deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps({"config": {"steps": 9}}))
    (tmp_path / "runs" / "two" / "done.json").write_text("{}")
    assert overview_of(tmp_path / "runs")["progress"]["holds"] == {
        "study/one": "run, unfinished, steps 0 of 9",
        "two": "run, done, steps 0 of 9",
    }


def test_models_beside_runs_are_passed_over(tmp_path):
    """They have a `config.json`, too, which is no damaged one of a run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": {"steps": 9}, "recipe": "embedded"}))
    (tmp_path / "swin").mkdir()
    (tmp_path / "swin" / "config.json").write_text(json.dumps({"model_type": "swin", "depths": [2, 2]}))
    assert overview_of(tmp_path)["progress"]["holds"] == {"run": "run, unfinished, steps 0 of 9"}


def test_a_store_whose_jobs_wait_is_in_the_line_before_there_is_any(tmp_path):
    jobs = tmp_path / "priors" / "own-jsonl.0123.jobs"
    jobs.mkdir(parents=True)
    line = {"name": "priors", "job": "7", "tasks": [0], "script": "priors.sh", "offset": 0, "submission": 1}
    (jobs / "submitted.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "priors" / "other.jobs").mkdir()
    assert overview_of(tmp_path / "priors")["progress"]["holds"] == {
        "own-jsonl.0123.zarr": "store, waiting, shards 0 (no store yet)"
    }


def test_a_folder_of_none_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="neither a store"):
            overview_of(folder)
