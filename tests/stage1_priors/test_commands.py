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
