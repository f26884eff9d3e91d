"""`l2l priors`: plans and stores; what a run does is tested where it is done."""

import pytest


@pytest.mark.parametrize("command", ["status", "verify", "score", "inspect"])
def test_a_missing_store_is_named(l2l, tmp_path, command):
    ran = l2l("priors", command, tmp_path / "none.zarr")
    assert ran.status == 2 and "none.zarr" in ran.err and ran.err.count("\n") == 1


def test_priors_run_plans_without_an_engine(l2l, refshapes, tmp_path):
    sets = ("--set", f"data.root={refshapes}", "--set", f"cache_root={tmp_path}")
    ran = l2l("priors", "run", "embedded", *sets, "--dry-run", "--json")
    assert ran.status == 0
    assert ran.json["pairs"] > 0 and sum(ran.json["splits"].values()) == ran.json["pairs"]


def test_a_change_that_the_run_does_not_read_is_told(l2l, refshapes, tmp_path):
    sets = ("--set", f"data.root={refshapes}", "--set", f"cache_root={tmp_path}")
    idle = ("--set", "model.sample_temperature=0.2", "--set", "proposer.smoothing=0.1")
    ran = l2l("priors", "run", "embedded", *sets, *idle, "--dry-run")
    assert ran.status == 0 and ran.err.splitlines()[:2] == [
        "note: model.sample_temperature=0.2 has no effect: model.num_samples is 0",
        "note: proposer.smoothing=0.1 has no effect: proposer.kind is sam2",
    ]
    assert "note:" not in l2l("priors", "run", "embedded", *sets, "--dry-run").err
    assert "note:" not in l2l("priors", "run", "embedded", *sets, *idle, "--dry-run", "--quiet").err


def test_what_changed_is_told_a_line_each(monkeypatch, l2l):
    lines = ["asked.prompt: system: one, two -> none (from a.zarr)", "proposer.grid: 16 -> 8 (from a.zarr)"]
    monkeypatch.setattr(
        "stage1_priors.dry_run.describe_plan", lambda config, quiet: {"pairs": 3, "changed": lines}
    )
    ran = l2l("priors", "run", "embedded", "--dry-run")
    assert ran.out.splitlines() == ["pairs: 3", "changed:", *(f"  {line}" for line in lines)]


def test_a_few_pairs_are_planned_by_limit(l2l, refshapes, tmp_path):
    sets = ("--set", f"data.root={refshapes}", "--set", f"cache_root={tmp_path}")
    ran = l2l("priors", "run", "embedded", *sets, "--limit", 8, "--dry-run")
    assert ran.status == 0
    assert {"pairs: 8", "shards: 1"} <= {*ran.out.splitlines()} and "limit: the first 8 of " in ran.out
    ran = l2l("priors", "run", "import", "--limit", 8)
    assert ran.status == 2 and "--limit is for recipes that ask a model" in ran.err
    assert l2l("priors", "run", "embedded", *sets, "--limit", 0, "--dry-run").status == 2
