"""Reading runs: what must be there, what may be missing, and that missing parts are named."""

import json

import pytest

from shared.errors import DataError
from stage2_train.report.collect import collect_runs


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for path, message in ((tmp_path / "none", "no such run"), (tmp_path, "no config.json")):
        with pytest.raises(DataError, match=message):
            collect_runs([path])
    with pytest.raises(DataError, match="no run directory was given"):
        collect_runs([])


def test_a_broken_config_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="config.json"):
        collect_runs([tmp_path])


def test_everything_else_may_be_missing_and_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"method": "l2l"}))
    (run,) = collect_runs([tmp_path])
    assert run.method == "l2l" and run.evals == {} and run.fraction is None
    assert [line.split(":")[0] for line in run.missing] == ["split.json", "metrics.jsonl"]
    assert not run.done and run.logged_step == 0


def test_facts_come_from_where_training_puts_them(make_run, world):
    (run,) = collect_runs([make_run("a")])
    assert run.data == {"root": str(world.data), "dataset": "refshapes", "split_by": "unc"}
    assert (run.seed, run.fraction, run.labelled) == (22, 0.05, (3, 7))
    assert run.missing == []


def test_a_line_cut_by_a_crash_is_counted_not_raised(make_run):
    path = make_run("a")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')
    (run,) = collect_runs([path])
    assert run.missing == ["metrics.jsonl: 1 unreadable line(s), first at line 212"]


def test_a_sentence_written_twice_counts_once(make_run):
    path = make_run("a")
    file = path / "eval" / "val.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[0]]))
    (run,) = collect_runs([path])
    assert len(run.evals["val"].sample_ids) == len(lines)
    assert "appear twice" in run.missing[0]


def test_an_expression_with_a_line_separator_stays_one_row(make_run):
    path = make_run("a")
    file = path / "eval" / "val.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["expression"] = "left\u2028right"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    (run,) = collect_runs([path])
    assert run.evals["val"].expressions[0] == "left\u2028right"


def test_runs_of_one_name_get_different_labels(tmp_path):
    paths = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    for path in paths:
        path.mkdir(parents=True)
        (path / "config.json").write_text('{"method": "l2l"}')
    assert [run.name for run in collect_runs(paths)] == ["x/run", "y/run"]
    assert len({run.name for run in collect_runs([paths[0], paths[0]])}) == 2


def test_cells_of_a_grid_are_told_apart_by_what_differs(make_run):
    paths = [
        make_run(f"{method}/fraction-0.01/seed-{seed}") for method in ("supervised", "l2l") for seed in (1, 2)
    ]
    assert [run.name for run in collect_runs(paths)] == [
        f"{method}/fraction-0.01/seed-{seed}" for method in ("supervised", "l2l") for seed in (1, 2)
    ]
