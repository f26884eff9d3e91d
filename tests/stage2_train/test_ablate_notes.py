"""What is said of a grid's arms before anything is trained, and in its tables."""

from pathlib import Path

import pytest

from stage2_train.ablate_grid import read_grid
from stage2_train.ablate_notes import few, notes_of
from tests.stage2_train.test_ablate_grid import GRIDS, grid_file

HEAD = """
reference = "supervised"
recipe = "embedded"
fractions = [0.01]
seeds = [1, 2]
{head}
[methods.supervised]
recipe = "supervised-embedded"
"""


def said(tmp_path: Path, methods: str, head: str = "") -> list[str]:
    return notes_of(read_grid(grid_file(tmp_path, HEAD.format(head=head) + methods)))


def test_a_setting_of_a_method_that_it_does_not_read(tmp_path: Path) -> None:
    assert said(tmp_path, '[methods.tau-80]\nlabel = "T"\nset = ["l2l.tau_fg=0.8"]') == [
        "note: T: l2l.tau_fg=0.8 has no effect: l2l.use_rple is true: the policy picks the thresholds, within "
        "rple.policy.*"
    ]
    assert said(tmp_path, '[methods.tau-80]\nset = ["l2l.tau_fg=0.8", "l2l.use_rple=false"]') == []


def test_a_setting_of_all_is_idle_if_no_method_reads_it(tmp_path: Path) -> None:
    one = '[methods.l2l]\n[methods.fixmatch]\nrecipe = "fixmatch-embedded"\n'
    assert said(tmp_path, one, 'set = ["spm.base=0.4"]') == []  # L2L reads it
    (line,) = said(tmp_path, one, 'set = ["optim.lr=0.001"]')
    assert line.startswith(
        "note: supervised, l2l, fixmatch: optim.lr=0.001 has no effect: optim.name is muon"
    )
    overrides = '[overrides.plain]\n[overrides.wrong]\nset = ["misplaced_priors=0.3"]\n'
    assert said(tmp_path, one + overrides) == []
    (line,) = said(tmp_path, overrides)
    assert line.startswith(
        "note: supervised+wrong: misplaced_priors=0.3 has no effect: method supervised reads no"
    )


def test_a_part_that_nothing_trains(tmp_path: Path) -> None:
    (line,) = said(tmp_path, '[methods.l2l]\nset = ["l2l.use_sesm=false"]')
    assert line.startswith("note: l2l: segmentor.sesm is in the network all the same")


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (
            '[methods.long]\nset = ["steps=800"]\n[methods.l2l]',
            ["WARNING: the arms differ in steps: 400 (supervised, l2l); 800 (long)"],
        ),
        (
            '[methods.l2l]\n[methods.wide]\nset = ["batch_unlabelled=32"]',
            ["WARNING: the arms differ in batch_unlabelled: 16 (l2l); 32 (wide)"],
        ),
        (
            '[methods.l2l]\n[methods.wrong]\nset = ["misplaced_priors=0.3"]',
            ["WARNING: the arms differ in misplaced_priors: 0.0 (l2l); 0.3 (wrong)"],
        ),
        (
            '[methods.l2l]\n[overrides.short]\nset = ["steps=300"]\n[overrides.long]\nset = ["steps=600"]',
            [],  # each is compared with the reference under the same override
        ),
    ],
)
def test_budgets_that_are_not_the_same(tmp_path: Path, methods: str, expected: list[str]) -> None:
    assert said(tmp_path, methods) == expected


def test_labels_beside_masks_are_part_of_the_name(tmp_path: Path) -> None:
    text = HEAD.format(head="") + '[methods.o]\nrecipe = "omni-res-box-embedded"\nlabel = "Omni"\n'
    grid = read_grid(grid_file(tmp_path, text))
    assert {cell.shown for cell in grid.cells} == {"supervised", "Omni (+ box)"}
    assert notes_of(grid) == ["note: Omni (+ box): given the true box of every unlabelled object besides"]
    grid = read_grid(grid_file(tmp_path, text + "[overrides.plain]\n"))
    assert grid.cells[-1].shown == "Omni (+ box)+plain"


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_grids_that_come_along_compare_equals(path: Path) -> None:
    assert [note for note in notes_of(read_grid(path)) if "given the true" not in note] == []


def test_many_names_are_cut() -> None:
    assert few(["a", "b"], 2) == "a, b" and few([*"abcd"], 2) == "a, b and 2 more"
