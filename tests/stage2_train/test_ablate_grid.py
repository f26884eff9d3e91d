"""Grid files: which cells they mean, and one line for whatever is wrong with them."""

from pathlib import Path

import pytest

from shared.errors import DataError
from stage2_train.ablate_grid import read_grid

GRIDS = Path(__file__).parents[2] / "stage2_train" / "grids"

BASE = """
reference = "supervised"
recipe = "embedded"
fractions = [0.01, 0.05]
seeds = [1, 2, 3]
set = ["steps=30", "optim.muon.lr=1e-3"]

[methods.supervised]
recipe = "supervised-embedded"

[methods.l2l]
set = ["steps=40"]
"""

OVERRIDES = """
[overrides.plain]
[overrides.no-flip]
set = ["weak.flip_probability=0", "steps=50"]
"""


def grid_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return path


def test_every_combination_is_a_cell_once(tmp_path: Path) -> None:
    grid = read_grid(grid_file(tmp_path, BASE + OVERRIDES))
    keys = [(c.method, c.override, c.fraction, c.seed) for c in grid.cells]
    assert len(set(keys)) == len(keys) == 2 * 2 * 2 * 3
    assert keys[:3] == [("supervised", "plain", 0.01, seed) for seed in (1, 2, 3)]
    assert len({c.name for c in grid.cells}) == len(keys) and grid.splits == ("val",)
    for cell in grid.cells:
        assert (cell.config.fraction, cell.config.seed) == (cell.fraction, cell.seed)
        assert cell.config.optim.muon.lr == 1e-3


def test_later_changes_win(tmp_path: Path) -> None:
    grid = read_grid(grid_file(tmp_path, BASE + OVERRIDES))
    steps = {(c.method, c.override): c.config.steps for c in grid.cells}
    assert steps == {
        ("supervised", "plain"): 30,
        ("supervised", "no-flip"): 50,
        ("l2l", "plain"): 40,
        ("l2l", "no-flip"): 50,
    }


def test_names_are_folders(tmp_path: Path) -> None:
    names = [c.name for c in read_grid(grid_file(tmp_path, BASE)).cells]
    assert names[0] == "supervised/fraction-0.01/seed-1" and names[-1] == "l2l/fraction-0.05/seed-3"
    crossed = read_grid(grid_file(tmp_path, BASE + OVERRIDES)).cells
    assert crossed[-1].name == "l2l+no-flip/fraction-0.05/seed-3"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('reference = "supervised"', "", "reference is missing"),
        ('reference = "supervised"', 'reference = "ccvc"', "'ccvc' is none of the methods supervised, l2l"),
        ("fractions = [0.01, 0.05]", "fractions = [2.0]", r"methods.supervised: .*fraction is 2.0"),
        ("fractions = [0.01, 0.05]", "fractions = 0.05", "fractions is 0.05, not a list of float values"),
        ("fractions = [0.01, 0.05]", "fractions = [0.05, 0.05]", "holds a value twice"),
        ("seeds = [1, 2, 3]", "seeds = []", r"seeds is \[\], not a list of int"),
        ("seeds = [1, 2, 3]", 'seeds = [1, "2"]', "not a list of int"),
        ("seeds = [1, 2, 3]", "seeds = [true]", "not a list of int"),
        ("seeds = [1, 2, 3]", "seed = [1]", "seed: no such key"),
        ('set = ["steps=40"]', 'sets = ["steps=40"]', "methods.l2l.sets: no such key"),
        ('set = ["steps=40"]', 'set = ["step=40"]', "methods.l2l: .*no field 'step'"),
        ('set = ["steps=40"]', 'set = ["seed=40"]', "'seed=40' belongs under seeds"),
        ('set = ["steps=40"]', 'set = ["data.root=elsewhere"]', "differ in data .*elsewhere"),
        ('set = ["steps=40"]', 'set = ["cache_root=other"]', "differ in cache_root"),
        ("[methods.l2l]", '[methods.l2l]\nlabel = ""', "methods.l2l.label is '', not a name"),
        ("[methods.l2l]", "[methods.l2l]\nlabel = 3", "methods.l2l.label is 3, not a name"),
        (
            "[methods.l2l]",
            '[methods.l2l]\nlabel = "supervised"',
            "'supervised' is what methods.supervised is",
        ),
        ('recipe = "supervised-embedded"', 'recipe = "nosuch"', "methods.supervised: no recipe 'nosuch'"),
        ("[methods.supervised]", '[methods."a/b"]', "'a/b' cannot be part of a folder name"),
        ("[methods.l2l]", "[methods.l2l", "cannot be read as TOML.*line"),
    ],
)
def test_rejections_name_file_key_and_value(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert BASE.count(old) == 1
    path = grid_file(tmp_path, BASE.replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        read_grid(path)
    assert str(path) in str(caught.value)


def test_methods_may_read_stores_of_their_own(tmp_path: Path) -> None:
    text = BASE.replace('set = ["steps=40"]', 'set = ["store=sam.zarr"]')
    path = grid_file(tmp_path, text)
    assert {(c.method, c.config.store) for c in read_grid(path).cells} == {
        ("supervised", ""),
        ("l2l", "sam.zarr"),
    }
    with pytest.raises(DataError, match="'store=box.zarr': methods.l2l names a store of its own"):
        read_grid(path, ["steps=7", "store=box.zarr"])
    plain = read_grid(grid_file(tmp_path, BASE), ["store=box.zarr"])
    assert {c.config.store for c in plain.cells} == {"box.zarr"}


def test_a_label_is_shown_and_names_no_folder(tmp_path: Path) -> None:
    text = BASE.replace("[methods.l2l]", '[methods.l2l]\nlabel = "L2L (ours)"') + OVERRIDES
    shown = {cell.arm: cell.shown for cell in read_grid(grid_file(tmp_path, text)).cells}
    assert shown == {
        "supervised+plain": "supervised+plain",
        "supervised+no-flip": "supervised+no-flip",
        "l2l+plain": "L2L (ours)+plain",
        "l2l+no-flip": "L2L (ours)+no-flip",
    }


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.toml"):
        read_grid(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_grids_can_be_read(path: Path) -> None:
    grid = read_grid(path)
    assert len({cell.seed for cell in grid.cells}) >= 3 and len({cell.method for cell in grid.cells}) >= 3
    assert grid.reference in {cell.method for cell in grid.cells}
    assert {cell.config.steps for cell in grid.cells} == {grid.cells[0].config.steps}


@pytest.mark.parametrize("name", ["paper-headline", "paper-ablations"])
def test_the_grids_of_the_papers_size_go_to_other_data(name: str) -> None:
    changes = ["data.root=elsewhere", "data.dataset=refcoco+", "data.split_by=unc"]
    data = {cell.config.data for cell in read_grid(GRIDS / f"{name}.toml", changes).cells}
    assert [(one.root, one.dataset, one.split_by) for one in data] == [("elsewhere", "refcoco+", "unc")]


def test_refcocog_is_compared_as_refcoco_is() -> None:
    grid, other = (read_grid(GRIDS / f"paper-headline{end}.toml") for end in ("", "-g"))
    assert [cell.name for cell in grid.cells] == [cell.name for cell in other.cells]
    data = other.cells[0].config.data
    assert (data.dataset, data.split_by, other.splits) == ("refcocog", "umd", ("val", "test"))


def test_one_run_under_two_names_is_refused(tmp_path: Path) -> None:
    text = BASE + '[methods.again]\nset = ["steps=40", "spm.eps=1e-4"]\n'  # what eps is anyway
    message = "cells l2l/fraction-0.01/seed-1 and again/fraction-0.01/seed-1 are the same run under two names"
    with pytest.raises(DataError, match=message):
        read_grid(grid_file(tmp_path, text))


def test_labelled_images_of_a_file_are_the_same_for_all(tmp_path: Path) -> None:
    text = BASE.replace("[0.01, 0.05]", "[0.05]")
    assert read_grid(grid_file(tmp_path, text), ["image_ids_file=ids.txt"]).cells
    text = text.replace('set = ["steps=40"]', 'set = ["image_ids_file=ids.txt"]')
    with pytest.raises(DataError, match="differ in image_ids_file"):
        read_grid(grid_file(tmp_path, text))


def test_each_seed_may_have_its_own_labelled_images(tmp_path: Path) -> None:
    grid = read_grid(grid_file(tmp_path, "split_seeds = [7, 0, 9]" + BASE))
    assert {(c.seed, c.config.split_seed) for c in grid.cells} == {(1, 7), (2, 0), (3, 9)}
    plain = grid_file(tmp_path, BASE)
    assert {c.config.split_seed for c in read_grid(plain).cells} == {0}
    assert {c.config.split_seed for c in read_grid(plain, ["split_seed=7"]).cells} == {7}


@pytest.mark.parametrize("where", ["set", "methods.l2l.set", "--set"])
def test_a_draw_is_not_set_where_each_seed_has_its_own(tmp_path: Path, where: str) -> None:
    old = {"set": '"steps=30"', "methods.l2l.set": '"steps=40"', "--set": "none"}[where]
    path = grid_file(tmp_path, "split_seeds = [7, 0, 9]" + BASE.replace(old, f'{old}, "split_seed=4"'))
    with pytest.raises(DataError, match=f"toml: {where}: 'split_seed=4' belongs under split_seeds"):
        read_grid(path, ["split_seed=4"] if where == "--set" else [])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "seeds = [1, 2, 3]",
            "seeds = [1, 2, 3]\nsplit_seeds = [0, 1]",
            r"split_seeds \[0, 1\] are 2, seeds .* 3",
        ),
        ('set = ["steps=40"]', 'set = ["split_seed=4"]', "differ in split_seed .0 and 4.: they could not be"),
        (
            'set = ["steps=30", ',
            'set = ["image_ids_file=ids.txt", ',
            "fractions: image_ids_file names the labelled",
        ),
    ],
)
def test_what_is_labelled_must_be_one_thing(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert BASE.count(old) == 1
    with pytest.raises(DataError, match=message):
        read_grid(grid_file(tmp_path, BASE.replace(old, new)))
