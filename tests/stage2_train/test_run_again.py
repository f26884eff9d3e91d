"""What a run is started from: recipes, and runs that are there."""

import json
import shutil
from pathlib import Path

import pytest

from shared.errors import DataError
from shared.refer import load_refer
from stage2_train.inputs import open_inputs
from stage2_train.recipes import RECIPES
from stage2_train.run_again import start_in, start_of
from stage2_train.run_files import read_run_config
from tests.stage2_train.miniature import mini_config, write_priors


def test_a_recipe_is_itself_and_its_changes() -> None:
    start = start_of("embedded", ["steps=9"])
    assert (start.recipe, start.overrides, start.config.steps, start.run) == (
        "embedded",
        ("steps=9",),
        9,
        None,
    )
    assert start_in("embedded", [], None, resume=False)[1] == Path("runs/embedded")


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_run_gives_the_settings_that_it_recorded(mini_run: Path, mini_root: Path, name: str) -> None:
    """Those of no recipe of today, too; a change comes on top of them."""
    recorded = json.loads((mini_run / "config.json").read_text())
    start = start_of(str(mini_run / name), ["seed=23"])
    assert start.config.steps == 2 and start.config.seed == 23 and start.run == mini_run
    store = recorded["store"]["path"]
    assert start.recipe == "mini" == recorded["recipe"] and start.recipe not in RECIPES
    assert start.overrides == (*recorded["overrides"], f"store={store}", "seed=23")
    same = start_of(str(mini_run)).config
    assert same.data == mini_config(mini_root).data and same.optim == read_run_config(mini_run).optim


def test_a_new_run_reads_the_store_of_the_old_one(mini_root: Path, tmp_path: Path, mini_run: Path) -> None:
    stores, run = tmp_path / "stores", tmp_path / "run"
    shutil.copytree(mini_root / "stores", stores)
    shutil.copytree(mini_run, run)
    record = json.loads((run / "config.json").read_text())
    record["config"]["cache_root"] = str(stores)
    record["store"]["path"] = str(tmp_path / "moved away")
    (run / "config.json").write_text(json.dumps(record))
    write_priors(
        stores / "later.zarr", load_refer(mini_root / "data", "refshapes", "unc"), fingerprint="a" * 16
    )
    with pytest.raises(DataError, match="2 prior stores fit"):
        open_inputs(read_run_config(run))
    found = open_inputs(start_of(str(run)).config).store
    assert found is not None and found["fingerprint"] == record["store"]["fingerprint"]
    other = start_of(str(run), [f"store={stores / 'later.zarr'}"])
    assert other.config.store == str(stores / "later.zarr") and other.overrides[-1].endswith("later.zarr")


def test_a_run_is_gone_on_with_without_its_recipe(mini_run: Path, tmp_path: Path) -> None:
    for named, out in ((None, mini_run), (str(mini_run), None), (str(mini_run), mini_run)):
        start, folder = start_in(named, [], out, resume=True)
        assert folder == mini_run and start.config.steps == 2
    assert start_in(str(mini_run), [], tmp_path, resume=False)[1] == tmp_path


def test_what_cannot_be_started_is_one_line(mini_run: Path, tmp_path: Path) -> None:
    for resume, out in ((False, mini_run), (True, None)):
        with pytest.raises(DataError, match="name a RECIPE, or a run to go on with by --resume --out RUN"):
            start_in(None, [], out, resume=resume)
    with pytest.raises(DataError, match=f"{mini_run} is a run: name a folder .* by --out"):
        start_in(str(mini_run), [], None, resume=False)
    for named in (tmp_path, str(tmp_path), "runs/nowhere"):
        with pytest.raises(DataError, match=f"{named}: neither a recipe nor a run's folder"):
            start_of(named)
    with pytest.raises(
        DataError, match=r"no recipe 'embeded' \(close to it: embedded, .*\); `l2l recipes` lists"
    ):
        start_of("embeded")
    with pytest.raises(DataError, match="no field 'step'"):
        start_of(str(mini_run), ["step=3"])
