"""Which folders are a grid's runs, and what their files say."""

import json

import pytest

from shared import grid_folders
from shared.errors import DataError
from shared.grid_folders import cells_of, failure_of, is_finished, method_of


def test_runs_come_by_method_share_and_seed_whatever_their_numbers_look_like(tmp_path):
    names = [
        "a/fraction-1e-05/seed--1",
        "a/fraction-0.1/seed-9",
        "a/fraction-0.1/seed-10",
        "b/fraction-1/seed-2",
    ]
    for name in (*reversed(names), "a/fraction-0.1/seed-9.old", "a/notes"):
        (tmp_path / name).mkdir(parents=True)
    assert [str(run.relative_to(tmp_path)) for run in cells_of(tmp_path)] == names
    assert cells_of(tmp_path / "none") == []


def test_a_run_is_finished_with_its_scores(tmp_path):
    (tmp_path / "eval").mkdir()
    for name in ("done.json", "eval/val.json"):
        assert not is_finished(tmp_path)
        (tmp_path / name).write_text("{}")
    assert is_finished(tmp_path)


def test_a_failure_may_go_while_it_is_read(tmp_path, monkeypatch):
    assert failure_of(tmp_path) is None
    file = tmp_path / "failed.json"
    file.write_text(json.dumps({"reason": "collapsed"}))
    assert failure_of(tmp_path) == "collapsed"
    file.write_text("{")
    with pytest.raises(DataError, match=r"failed\.json: cannot be read"):
        failure_of(tmp_path)
    read = grid_folders.read_json

    def removed(path):
        path.unlink()
        return read(path)

    monkeypatch.setattr(grid_folders, "read_json", removed)
    assert failure_of(tmp_path) is None


def test_a_grid_says_what_it_calls_the_method_of_a_run(tmp_path):
    run = tmp_path / "study" / "l2l+plain" / "fraction-0.1" / "seed-1"
    run.mkdir(parents=True)
    assert method_of(run) == ("study", "l2l+plain")
    (tmp_path / "study" / "grid.json").write_text(json.dumps({"labels": {"l2l+plain": "L2L+plain"}}))
    assert method_of(run) == ("study", "L2L+plain")
    assert method_of(tmp_path / "study") is None
