"""A grid's folder: its runs lie below it as `<method>/fraction-<f>/seed-<s>/`, and what their files say of them."""

import re
from pathlib import Path

from shared.errors import DataError
from shared.json_files import read_json

CELL = re.compile(r"fraction-(\d+(?:\.\d+)?(?:e-\d+)?)/seed-(-?\d+)")
"""Folder of a run below that of its method."""

GRID_FILE = "grid.json"
"""Name of the file in a grid's folder that names all its runs, begun or not, and says what methods are called."""

FAILED_FILE = "failed.json"
"""Name of the file in a run's folder that says why it failed."""


def require_no_run(grid: Path) -> None:
    """Refuse the folder of a single run as that of a grid, which would be taken for the run ever after."""
    if (grid / "config.json").is_file():
        raise DataError(f"{grid}: holds a single run; choose another folder for the grid (--out)")


def require_no_grid(run: Path) -> None:
    """Refuse the folder of a grid as that of a single run."""
    if (run / GRID_FILE).is_file():
        raise DataError(f"{run}: holds a grid; choose another folder for the run (--out)")


def cells_of(grid: Path) -> list[Path]:
    """Folders of the runs of a grid that have begun, by method, share of labels and seed; none in another folder."""
    found = [
        (run.parent.parent.name, float(match[1]), int(match[2]), run)
        for run in grid.glob("*/fraction-*/seed-*")
        if (match := CELL.fullmatch(f"{run.parent.name}/{run.name}"))
    ]
    return [run for *_, run in sorted(found)]


def names_of(grid: Path) -> list[str]:
    """Names of all runs that a grid was begun with, as folders below its own; none if its folder does not say.

    Raises:
        DataError: The file that says so is damaged.
    """
    file = grid / GRID_FILE
    return [str(name) for name in read_json(file).get("cells") or []] if file.is_file() else []


def method_of(run: Path) -> tuple[str, str] | None:
    """What a run's grid is called and what it calls the run's method; None for a run that lies in no grid.

    Raises:
        DataError: The grid's file is damaged.
    """
    *_, grid, method, fraction, seed = ("", "", "", "", *run.resolve().parts)
    if not CELL.fullmatch(f"{fraction}/{seed}"):
        return None
    file = run.resolve().parents[2] / GRID_FILE
    labels = read_json(file).get("labels") or {} if file.is_file() else {}
    return grid, str(labels.get(method, method))


def is_finished(run: Path) -> bool:
    """Whether a run was trained to its end and scored; which splits were asked for, its folder does not say."""
    return (run / "done.json").is_file() and any((run / "eval").glob("*.json"))


def failure_of(run: Path) -> str | None:
    """Why the last try of a run failed; None if it did not.

    Raises:
        DataError: The file that says so is damaged.
    """
    file = run / FAILED_FILE
    if not file.is_file():
        return None
    try:
        return str(read_json(file).get("reason"))
    except DataError:
        if file.is_file():
            raise
        return None  # removed by a new try in the meantime
