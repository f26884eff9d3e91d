"""The table of a grid, by hand."""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from shared.runlog import RunLog
from stage2_train.ablate_grid import Grid, read_grid
from stage2_train.ablate_table import (
    METRICS,
    as_text,
    build_rows,
    collect_codes,
    collect_labels,
    prior_scores,
    rows_as_csv,
    rows_as_json,
)
from tests.stage2_train.test_ablate_grid import BASE, OVERRIDES, grid_file

VALUES = {
    ("supervised", 1): 0.40,
    ("supervised", 2): 0.50,
    ("l2l", 1): 0.60,
    ("l2l", 2): 0.64,
    ("l2l", 3): 0.80,
}

LABELS = {"supervised/fraction-0.05/seed-1": (0.02, 20)}
"""Of those that were asked for, these carry a mask."""


def result(value: float, prior: float | None = None) -> dict[str, Any]:
    def frame(shift: float) -> dict[str, float]:
        return {metric: value + shift + number / 100 for number, metric in enumerate(METRICS)}

    prior_frame = None if prior is None else {"original": dict.fromkeys(METRICS, prior)}
    return {"original": frame(0.0), "model": frame(0.1), "prior": prior_frame}


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return read_grid(grid_file(tmp_path, BASE.replace("[0.01, 0.05]", "[0.05]")))


def rows_of(grid: Grid) -> list[dict[str, Any]]:
    done = [cell for cell in grid.cells if (cell.method, cell.seed) in VALUES]
    scores = {(cell.name, "val"): result(VALUES[cell.method, cell.seed]) for cell in done}
    return rows_as_json(build_rows(grid, done, scores, LABELS))


def pick(
    rows: list[dict[str, Any]], arm: str, metric: str = "oiou", frame: str = "original"
) -> dict[str, Any]:
    (row,) = [r for r in rows if (r["arm"], r["metric"], r["frame"]) == (arm, metric, frame)]
    return row


def test_mean_spread_and_paired_differences(grid: Grid) -> None:
    rows = rows_of(grid)
    base, l2l = pick(rows, "supervised"), pick(rows, "l2l")
    assert base["seeds"] == (1, 2) and base["mean"] == pytest.approx(0.45)
    assert base["sd"] == pytest.approx(math.sqrt(2 * 0.05**2))
    assert base["difference"] is None and base["paired_seeds"] == ()
    assert l2l["seeds"] == (1, 2, 3) and l2l["mean"] == pytest.approx(0.68)
    assert l2l["paired_seeds"] == (1, 2)  # seed 3 of the reference is not finished
    assert l2l["difference"] == pytest.approx((0.20 + 0.14) / 2)
    assert l2l["difference_sd"] == pytest.approx(math.sqrt(2 * 0.03**2))
    assert pick(rows, "l2l", "miou", "model")["mean"] == pytest.approx(0.68 + 0.1 + 0.01)


def test_differences_are_of_one_seed_each(grid: Grid) -> None:
    """Whatever is missing, and in whatever order the cells have ended."""
    values = {("supervised", 3): 0.4} | {
        key: value for key, value in VALUES.items() if key != ("supervised", 1)
    }
    cells = {(cell.method, cell.seed): cell for cell in grid.cells}
    done = [cells[key] for key in values]
    scores = {(cell.name, "val"): result(value) for cell, value in zip(done, values.values(), strict=True)}
    row = pick(rows_as_json(build_rows(grid, done, scores, {})), "l2l")
    assert row["paired_seeds"] == (2, 3) and row["difference"] == pytest.approx((0.14 + 0.4) / 2)
    assert row["difference_sd"] == pytest.approx(math.sqrt(2 * 0.13**2))


def test_a_single_seed_has_no_spread(grid: Grid) -> None:
    done = [cell for cell in grid.cells if cell.seed == 1]
    rows = rows_as_json(build_rows(grid, done, {(c.name, "val"): result(0.5) for c in done}, {}))
    row = pick(rows, "l2l")
    assert row["sd"] is None and row["difference"] == 0.0 and row["difference_sd"] is None


def test_overrides_are_compared_with_the_reference_under_the_same_override(tmp_path: Path) -> None:
    grid = read_grid(grid_file(tmp_path, BASE + OVERRIDES))
    values = {"supervised+plain": 0.1, "supervised+no-flip": 0.3, "l2l+plain": 0.5, "l2l+no-flip": 0.6}
    scores = {(cell.name, "val"): result(values[cell.arm]) for cell in grid.cells}
    rows = [r for r in rows_as_json(build_rows(grid, grid.cells, scores, {})) if r["fraction"] == 0.01]
    assert pick(rows, "l2l+plain")["difference"] == pytest.approx(0.4)
    assert pick(rows, "l2l+no-flip")["difference"] == pytest.approx(0.3)


def test_labels_are_those_that_were_read(grid: Grid, tmp_path: Path) -> None:
    """A share of all images, out of those that carry masks: 20 of 200 are all there are."""
    for cell, split in zip(grid.cells, ([*"abcdefghij"], [*"abcd"]), strict=False):
        (tmp_path / cell.name).mkdir(parents=True)
        text = json.dumps({"image_ids": split, "num_train_images": 200})
        (tmp_path / cell.name / "split.json").write_text(text)
    found = collect_labels(tmp_path, grid.cells[:3])
    assert found == {grid.cells[0].name: (0.05, 10), grid.cells[1].name: (0.02, 4)}


def test_cells_are_told_apart_by_the_code_that_began_them(grid: Grid, tmp_path: Path) -> None:
    for cell, code in zip(grid.cells, ({"sources": "aaaa"}, {"sources": "bbbb"}, {}), strict=False):
        (tmp_path / cell.name).mkdir(parents=True)
        (tmp_path / cell.name / "config.json").write_text(json.dumps({"code": code}))
    names = [cell.name for cell in grid.cells]
    assert collect_codes(tmp_path, grid.cells[:3]) == {"aaaa": [names[0]], "bbbb": [names[1]]}
    with RunLog(tmp_path / names[0], tensorboard=False) as log:
        for step, code in (
            (2, "cccc"),
            (2, "bbbb"),
            (4, "aaaa"),
        ):  # of two starts at a step the first left nothing
            log.log(step, "resume", num_processes=1, code=code)
    assert collect_codes(tmp_path, grid.cells[:3]) == {"aaaa": [names[0]], "bbbb": names[:2]}


def test_each_store_has_a_prior_of_its_own(grid: Grid) -> None:
    """Of several stores a score counts from those alone that read the store; of one, whoever has it."""
    by_method = {cell.method: cell for cell in grid.cells}
    scores = {
        (by_method["supervised"].name, "val"): result(0.4, prior=0.1),
        (by_method["l2l"].name, "val"): result(0.4, prior=0.71),
    }
    one = {"path": "a.zarr", "fingerprint": "a", "arms": {"l2l": "L2L"}}
    other = {"path": "b.zarr", "fingerprint": "b", "arms": {"u": "U", "v": "V", "w": "W", "x": "X"}}
    assert prior_scores(grid, [one], scores)["frozen prior alone"]["val"]["original"]["oiou"] == 0.1
    found = prior_scores(grid, [one, other], scores)
    assert {name: prior["val"]["original"]["oiou"] for name, prior in found.items()} == {
        "frozen prior alone (L2L)": 0.71
    }
    scores["reader", "val"] = result(0.4, prior=0.8)
    cell = dataclasses.replace(by_method["l2l"], method="w")
    scores[cell.name, "val"] = scores.pop(("reader", "val"))
    found = prior_scores(dataclasses.replace(grid, cells=(*grid.cells, cell)), [one, other], scores)
    answer = {
        "rows": rows_of(grid),
        "prior": found,
        "stores": [one, other],
        "reference": "supervised",
        "image_ids_file": "",
        "notes": [],
        "split_seeds": [0],
        "codes": {},
        "counts": {"done": 6},
        "unfinished": [],
    }
    lines = as_text(answer).splitlines()
    assert lines[1].startswith("val             frozen prior alone (L2L)") and " 0.7100 " in lines[1]
    assert "frozen prior alone (U, V and 2 more)" in lines[2] and " 0.8000 " in lines[2]
    assert "prior store of L2L: a.zarr" in lines and "prior store of U, V, W, X: b.zarr" in lines


def test_labels_name_the_rows(tmp_path: Path) -> None:
    text = BASE.replace("[0.01, 0.05]", "[0.05]").replace("[methods.l2l]", '[methods.l2l]\nlabel = "Ours"')
    rows = rows_of(read_grid(grid_file(tmp_path, text)))
    assert {row["arm"]: row["label"] for row in rows} == {"supervised": "supervised", "l2l": "Ours"}
    answer = {
        "rows": rows,
        "prior": {},
        "stores": [],
        "reference": "supervised",
        "image_ids_file": "",
        "notes": [],
    }
    said = as_text(answer | {"split_seeds": [0], "codes": {}, "counts": {}, "unfinished": []})
    assert " Ours " in said and " l2l " not in said and "against 'supervised'" in said
    renamed = text.replace("[methods.supervised]", '[methods.supervised]\nlabel = "Sup."') + OVERRIDES
    grid = read_grid(grid_file(tmp_path, renamed))
    done = grid.cells[:1]
    rows = rows_as_json(build_rows(grid, done, {(done[0].name, "val"): result(0.5)}, {}))
    assert rows[0]["label"] == "Sup.+plain"
    said = as_text(answer | {"rows": rows, "split_seeds": [0], "codes": {}, "counts": {}, "unfinished": []})
    assert "against 'Sup.'," in said


def test_csv_holds_every_row(grid: Grid) -> None:
    rows = rows_of(grid)
    read = list(csv.DictReader(io.StringIO(rows_as_csv(rows))))
    assert len(read) == len(rows) == 2 * 2 * len(METRICS)
    first = next(r for r in read if r["arm"] == "l2l" and r["metric"] == "oiou" and r["frame"] == "original")
    assert first["seeds"] == "1 2 3" and float(first["mean"]) == pytest.approx(0.68)
    base = next(r for r in read if r["arm"] == "supervised")
    assert base["difference"] == "" and base["paired_seeds"] == ""


def test_text_shows_scores_prior_and_what_is_missing(grid: Grid) -> None:
    cells = grid.cells[:1]
    prior = prior_scores(grid, [], {(cells[0].name, "val"): result(0.4, prior=0.71)})
    text = as_text(
        {
            "rows": rows_of(grid),
            "prior": prior,
            "stores": [],
            "reference": "supervised",
            "image_ids_file": "",
            "notes": [],
            "split_seeds": [0],
            "codes": {"aaaa": ["x"]},
            "counts": {"done": 5, "failed": 1},
            "unfinished": [
                {"cell": "supervised/fraction-0.05/seed-3", "state": "failed", "reason": "no memory"}
            ],
        }
    )
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == "val frozen prior alone 0.7100 0.7100".split()
    assert lines[2] == "val 2% (20) supervised 2 0.4500 0.0707 0.4600 0.0707".split()
    assert lines[3] == "val 5% l2l 3 0.6800 0.1058 +0.1700 0.0424 0.6900 0.1058 +0.1700 0.0424".split()
    assert "cells: 5 done, 1 failed" in text and "'supervised'" in text
    assert "one draw of labelled images (split_seed 0): sd is that of the training alone" in text
    assert "WARNING" not in text
    assert "diff of l2l at 5% is over 2 of its 3 seeds (1, 2), which alone the reference has finished" in text
    assert text.endswith("supervised/fraction-0.05/seed-3: failed: no memory")
    header = text.splitlines()[0]
    assert header.rstrip().endswith("sd") and len(header) >= len(text.splitlines()[3])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"split_seeds": [0, 3]}, ["each seed has a draw of labelled images of its own (split_seed 0, 3)"]),
        (
            {"image_ids_file": "ids.txt"},
            ["the labelled images of one file: sd is that of the training alone"],
        ),
        (
            {"codes": {"bbbb": ["b/x", "c/x"], "aaaa": [*"defg"]}},
            ["WARNING", "2 states of the code, bbbb (2), aaaa (4)", "not by aaaa: b/x, c/x"],
        ),
        (
            {"codes": {"aaaa": [*"abcdefghi"], "bbbb": [*"nopqrst"]}},
            ["not by aaaa: n, o, p, q, r and 2 more"],
        ),
        (
            {"codes": {"aaaa": [*"abc"], "bbbb": [*"bd"], "cccc": ["b"]}},
            [
                "3 states of the code, aaaa (3), bbbb (2), cccc (1); begun by one and continued by another: b; ",
                "not by aaaa alone: b, d",
            ],
        ),
        (
            {"codes": {"aaaa": ["a"], "bbbb": ["a"]}},
            ["WARNING", "continued by another: a; ", "aaaa alone: a"],
        ),
    ],
)
def test_text_says_what_the_spread_covers_and_which_code_trained(
    grid: Grid, changes: dict[str, Any], expected: list[str]
) -> None:
    answer = {
        "rows": rows_of(grid),
        "prior": {},
        "stores": [],
        "reference": "supervised",
        "image_ids_file": "",
        "notes": [],
        "split_seeds": [0],
        "codes": {"aaaa": list("uvwxyz")},
        "counts": {"done": 6},
        "unfinished": [],
    }
    text = as_text(answer | changes)
    assert all(part in text for part in expected)
