"""Commands around batch jobs of stage 2."""

import pytest


def test_jobs_take_a_run_for_a_recipe_too(l2l, mini_run, tmp_path):
    assert (
        l2l("submit", "train", "--out", mini_run, "--dry-run", "--json").json["jobs"] == []
    )  # it is finished
    (job,) = l2l(
        "submit", "train", mini_run, "--out", tmp_path / "r", "--set", "seed=3", "--dry-run", "--json"
    ).json["jobs"]
    assert f"train {mini_run} --set seed=3 --out {tmp_path / 'r'} --resume" in job["text"]
    assert l2l("params", mini_run, "--json").json["segmentor"] > 0
    assert l2l("submit", "train", "--dry-run").status == 2


@pytest.mark.parametrize("command", [("train", "embedded"), ("ablate", "GRID")])
def test_a_store_is_named_once(l2l, grid, command):
    words = [grid if word == "GRID" else word for word in command]
    ran = l2l("submit", *words, "--after", "a.zarr", "--set", "store=b.zarr", "--dry-run")
    assert ran.status == 2 and "leave out --set store=" in ran.err
