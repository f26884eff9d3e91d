"""`l2l train`, `eval`, `ablate`, `predict`, `export-labels`: what they hand on, what they print, when they refuse."""

import json
from pathlib import Path

import pytest


def test_params_counts_the_parts_of_a_recipe(l2l):
    full, plain = (
        l2l("params", "embedded", "--json").json,
        l2l("params", "supervised-embedded", "--json").json,
    )
    assert full["sesm"] > 0 and plain["sesm"] == 0
    assert full["segmentor"] - plain["segmentor"] == full["sesm"]
    assert f"{full['segmentor']:,}" in l2l("params", "embedded").out


def test_params_of_the_paper_are_the_published_ones(l2l):
    assert "227,739,514" in l2l("params", "paper-baseline").out


def test_training_without_a_store_is_refused(l2l, refshapes, tmp_path):
    sets = ("--set", f"data.root={refshapes}", "--set", f"cache_root={tmp_path}")
    ran = l2l("train", "embedded", *sets, "--set", "fraction=0.5", "--dry-run")
    assert ran.status == 2 and ran.out == "" and ran.err.count("\n") == 1
    assert str(tmp_path) in ran.err


def test_train_dry_run_prints_the_resolved_config(l2l, refshapes, tmp_path):
    arguments = ("--set", f"data.root={refshapes}", "--set", "fraction=0.5", "--set", "steps=7")
    arguments = (*arguments, "--set", "spm.eps=0.1")
    ran = l2l("train", "supervised-embedded", *arguments, "--out", tmp_path / "run", "--dry-run", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["config"]["steps"] == 7 and ran.json["config"]["fraction"] == 0.5
    assert ran.json["changed"]["steps"] == [400, 7] and ran.json["recipe"] == "supervised-embedded"
    assert ran.err == "note: spm.eps=0.1 has no effect: method is supervised\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["eval", "report"])
def test_a_missing_run_is_named(l2l, tmp_path, command):
    ran = l2l(command, tmp_path / "no-run")
    assert ran.status == 2 and "no-run" in ran.err and ran.err.count("\n") == 1


def test_eval_shows_both_sizes_and_the_prior_and_hands_everything_on(l2l, monkeypatch, tmp_path):
    asked = []

    def score(run, split, **options):
        asked.append((split, options))
        scores = {"oiou": 0.5, "miou": 0.25} | {f"pr@0.{tenth}": tenth / 100 for tenth in range(5, 10)}
        prior = {"original": scores | {"oiou": 0.75}, "model": scores} if split == "val" else None
        result = {
            "split": split,
            "model": scores,
            "original": scores,
            "prior": prior,
            "prior_note": "no prior: why",
        } | ({"with_prior": {"original": scores, "model": scores}} if options["with_prior"] else {})
        shared = {"testA": None, "testB": 3}.get(split, 0)
        return result | {
            "resolution": [96, 96],
            "limit": options["limit"],
            "num": 7,
            "shared_with_train": shared,
        }

    def score_all(run, splits, **options):
        return {split: score(run, split, **options) for split in splits}

    monkeypatch.setattr("stage2_train.evaluate.evaluate_splits", score_all)
    ran = l2l("eval", tmp_path, "--split", "val", "--split", "testB")
    assert [split for split, _ in asked] == ["val", "testB"] and asked[0][1]["write"]
    cells = [line.split() for line in ran.out.splitlines()[2:]]
    assert cells[0] == "val original network 0.5000 0.2500 0.0500 0.0600 0.0700 0.0800 0.0900".split()
    assert [row[:2] for row in cells] == [
        *([["val", "original"], ["val", "96x96"]] * 2),
        ["testB", "original"],
        ["testB", "96x96"],
        ["testB", "no"],
        ["testB", "3"],
    ]
    assert "testB  3 of 7 sentences are of images that were trained on" in ran.out
    assert "frozen prior   0.7500" in ran.out
    assert (
        "testA  not known how many sentences are of images" in l2l("eval", tmp_path, "--split", "testA").out
    )
    assert list(l2l("eval", tmp_path, "--json").json) == ["val"]
    more = ["--limit", "7", "--workers", "2", "--store", "x", "--root", "y", "--self-guided", "--with-prior"]
    assert "another method" not in ran.out
    said = l2l("eval", tmp_path, *more, "--batch", "5").out
    assert (
        "7 evenly spaced" in said and "with prior     0.5000" in said and "with prior: another method" in said
    )
    wanted = {"store": "x", "root": "y", "limit": 7, "workers": 2, "self_guided": True, "with_prior": True}
    wanted |= {"dataset_name": "", "split_by": "", "data_name": ""}
    assert asked[-1][1] == {**wanted, "batch": 5, "write": False, "quiet": False}
    assert asked[0][1]["batch"] == 64
    for option in ("--quiet", "--json"):
        l2l("eval", tmp_path, option)
        assert asked[-1][1]["quiet"] is True
    monkeypatch.setenv("RANK", "1")
    assert l2l("eval", tmp_path).out == "", "of several processes the first answers"


def test_train_hands_everything_on(l2l, monkeypatch, tmp_path):
    seen = {}

    def fake(config, out, **rest):
        seen.update(rest, steps=config.steps, out=out)
        return {"step": config.steps, "seconds": 1.25, "metrics": {}}

    monkeypatch.setattr("stage2_train.train.train", fake)
    ran = l2l("train", "embedded", "--set", "steps=9", "--out", tmp_path / "r", "--resume", "--json")
    assert ran.json == {"run": str(tmp_path / "r"), "step": 9, "seconds": 1.25, "metrics": {}}
    assert seen == {
        "steps": 9,
        "out": tmp_path / "r",
        "resume": True,
        "recipe": "embedded",
        "overrides": ["steps=9"],
        "quiet": True,
    }
    assert l2l("train", "embedded", "--set", "steps=9").out == "runs/embedded: 9 steps in 1 s\n"
    assert seen["resume"] is False and seen["quiet"] is False
    l2l("train", "embedded", "--set", "steps=9", "--quiet")
    assert seen["quiet"] is True


def test_a_run_goes_on_and_starts_another_without_its_recipe(l2l, mini_run, tmp_path):
    """The finished run is the very one that its folder holds; the new one's record says what it is."""
    assert l2l("train", "--resume", "--out", mini_run).out == f"{mini_run}: finished before, nothing to do\n"
    assert l2l("train", mini_run, "--resume").out == f"{mini_run}: finished before, nothing to do\n"
    assert "state: finished\n" in l2l("train", "--resume", "--out", mini_run, "--dry-run").out
    for dry_run in ([], ["--dry-run"]):
        ran = l2l("train", "--resume", "--out", mini_run, "--set", "steps=3", *dry_run)
        assert ran.status == 2 and "steps is 2 there, 3 now" in ran.err and ran.out == ""
    ran = l2l("train", mini_run, "--set", "steps=1", "--out", tmp_path / "new", "--quiet")
    assert ran.status == 0, ran.err
    old, new = (json.loads((run / "config.json").read_text()) for run in (mini_run, tmp_path / "new"))
    assert (new["recipe"], new["config"]["steps"], new["overrides"][-1]) == ("mini", 1, "steps=1")
    assert new["store"] == old["store"] and new["config"]["segmentor"] == old["config"]["segmentor"]


def test_ablate_dry_run_lists_the_cells(l2l, grid, tmp_path):
    ran = l2l("ablate", grid, "--out", tmp_path / "out", "--dry-run", "--json")
    assert ran.status == 0, ran.err
    assert len(ran.json["cells"]) == 4 and ran.json["stores"] == []
    text = l2l("ablate", grid, "--dry-run").out
    assert "out: runs/grid\n" in text and text.count("to do ") == 4 and "--set seed=2" in text
    assert not (tmp_path / "out").exists()


def test_ablate_refuses_with_one_line(l2l, grid, tmp_path):
    for arguments in (("--only", "3/3"), ("--out", tmp_path, "--only", "x")):
        ran = l2l("ablate", grid, *arguments)
        assert ran.status == 2 and ran.out == "" and ran.err.count("\n") == 1 and "i/n" in ran.err
    grid.write_text(grid.read_text().replace("seeds = [1, 2]", 'seeds = ["one"]'))
    ran = l2l("ablate", grid)
    assert ran.status == 2 and "seeds" in ran.err and str(grid) in ran.err


def test_ablate_hands_everything_on_and_says_whether_its_share_is_done(l2l, monkeypatch, grid, tmp_path):
    seen = []

    def fake(cells, out, **rest):
        seen.append((len(cells.cells), out, rest))
        left = len(seen) - 1
        return {
            "rows": [],
            "prior": {},
            "stores": [],
            "image_ids_file": "",
            "split_seeds": [0],
            "codes": {},
            "counts": {"done": 4},
            "unfinished": [],
            "own_unfinished": left,
            "reference": "r",
            "notes": [],
        }

    monkeypatch.setattr("stage2_train.ablate.run_grid", fake)
    ran = l2l("ablate", grid, "--out", tmp_path / "o", "--jobs", "3", "--only", "1/4", "--json")
    assert ran.status == 0 and ran.json["counts"] == {"done": 4}
    assert seen[0] == (4, tmp_path / "o", {"jobs": 3, "only": (1, 4), "quiet": True})
    assert "note:" not in ran.err
    ran = l2l("ablate", grid, "--set", "ema.export=false")
    assert ran.status == 1 and "cells: 4 done" in ran.out and "ema.export=false has no effect" in ran.err
    assert seen[1] == (4, Path("runs/grid"), {"jobs": 1, "only": (0, 1), "quiet": False})


def test_predict_hands_everything_on(l2l, monkeypatch, tmp_path):
    seen = []

    def one(*args, **options):
        seen.append((*args, options))
        return {"area_px": 3, "rle": {"size": [1, 3], "counts": "03"}}

    def many(*args, **options):
        seen.append((*args, options))
        return {"num": 2, "num_failed": len(seen) - 3}

    monkeypatch.setattr("stage2_train.predict.predict_one", one)
    monkeypatch.setattr("stage2_train.predict_lines.predict_jsonl", many)
    assert (
        l2l("predict", "run", "a.jpg", "the mug", "--out", tmp_path, "--json").json["rle"]["counts"] == "03"
    )
    assert l2l("predict", "run", "a.jpg", "the mug").out == "area_px: 3\n"
    ran = l2l("predict", "run", "--jsonl", "p.jsonl", "--batch", "3")
    assert (ran.status, ran.out) == (0, "num: 2\nnum_failed: 0\n")
    ran = l2l("predict", "run", "--jsonl", "p.jsonl", "--no-overlay", "--json")
    assert (ran.status, ran.json) == (1, {"num": 2, "num_failed": 1})
    many_words = (Path("run"), Path("p.jsonl"), Path("predictions"))
    assert seen == [
        (Path("run"), Path("a.jpg"), "the mug", tmp_path, {"with_overlay": True}),
        (Path("run"), Path("a.jpg"), "the mug", Path("predictions"), {"with_overlay": True}),
        (*many_words, {"batch": 3, "with_overlay": True, "quiet": False}),
        (*many_words, {"batch": 16, "with_overlay": False, "quiet": True}),
    ]
    for wrong in ((), ("a.jpg", "x", "--jsonl", "p.jsonl")):
        ran = l2l("predict", "run", *wrong)
        assert ran.status == 2 and "either IMAGE and EXPRESSION, or --jsonl" in ran.err


def test_export_labels_hands_everything_on(l2l, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "stage2_train.export_labels.export_labels",
        lambda run, out, **options: seen.append((run, out, options)) or {"num": 3},
    )
    assert l2l("export-labels", "runs/a", "--json").json == {"num": 3}
    given = ["--out", tmp_path, "--batch", "4", "--limit", "9", "--root", "y", "--store", "s.zarr"]
    assert l2l("export-labels", "runs/a", *given).out == "num: 3\n"
    default = {"batch": 16, "limit": 0, "root": "", "store": "", "quiet": True}
    wanted = {"batch": 4, "limit": 9, "root": "y", "store": "s.zarr", "quiet": False}
    assert seen == [(Path("runs/a"), Path("runs/a/labels"), default), (Path("runs/a"), tmp_path, wanted)]
