"""Recipes: built, documented, their shipped models in place, and a source of masks named by one setting."""

from pathlib import Path

import numpy as np
import pytest

from cli import app
from shared.config import apply_overrides
from shared.refer import load_refer
from shared.store.reader import PriorStore
from stage1_priors.config import ImportConfig, PriorsConfig
from stage1_priors.identity import locate_proposer
from stage1_priors.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_built_and_documented(name):
    config = RECIPES[name]()
    assert isinstance(config, PriorsConfig | ImportConfig) and RECIPES[name].__doc__
    assert config.splits[0] == "train" and "val" in config.splits


def test_the_embedded_recipes_differ_in_the_proposer_alone():
    first, second = RECIPES["embedded"](), RECIPES["embedded-soft-box"]()
    assert (first.proposer.kind, second.proposer.kind) == ("sam2", "soft-box")
    assert first.proposer.grid == second.proposer.grid
    assert apply_overrides(first, ["proposer.kind=soft-box", "proposer.path="]) == second
    assert (locate_proposer(first.proposer).folder / "model.safetensors").is_file()


def test_masks_are_imported_from_the_command_line(tmp_path, refshapes_root, capsys):
    from typer.testing import CliRunner

    for sample in load_refer(refshapes_root, "refshapes", "unc").samples("val"):
        np.save(tmp_path / f"{sample.sample_id}.npy", np.eye(9, dtype=np.float32))
    settings = {
        "source": tmp_path,
        "data.root": refshapes_root,
        "data.dataset": "refshapes",
        "splits": "val",
        "grid": 8,
        "cache_root": tmp_path / "cache",
    }
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    ran = CliRunner().invoke(app, ["priors", "run", "import", *sets], catch_exceptions=False)
    assert ran.exit_code == 0
    (store,) = Path(tmp_path / "cache").glob("*.zarr")
    assert PriorStore(store).is_complete and set(PriorStore(store).status_counts()) == {"imported"}
