"""A grid's folder stands for its finished runs, which lie below it as `<method>/fraction-<f>/seed-<s>/`."""

import re
from pathlib import Path

from shared.errors import DataError

CELL = re.compile(r"fraction-(\d+(?:\.\d+)?(?:e-\d+)?)/seed-(\d+)")
"""Folder of a run below that of its method."""


def expand(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Replace every folder of a grid by those of its runs.

    Args:
        paths: Folders of runs and of grids.

    Returns:
        Folders of runs, in the order given (of a grid by method, share of labels and seed), and those that had begun
        but are not finished and scored, and so are left out.

    Raises:
        DataError: A folder of neither, or a grid without a finished run.
    """
    runs: list[Path] = []
    left_out: list[Path] = []
    for path in paths:
        if not path.is_dir() or (path / "config.json").is_file():
            runs.append(path)
            continue
        cells = _cells(path)
        if not cells:
            raise DataError(
                f"{path}: not a run directory (it has no config.json), and no grid's: no runs in it"
            )
        finished = [cell for cell in cells if _is_finished(cell)]
        if not finished:
            raise DataError(f"{path}: none of the {len(cells)} runs of this grid is finished and scored")
        runs += finished
        left_out += [cell for cell in cells if cell not in finished]
    return runs, left_out


def _cells(path: Path) -> list[Path]:
    """Folders of runs below a grid's, by method, share of labels and seed."""
    found = []
    for run in path.glob("*/fraction-*/seed-*"):
        if match := CELL.fullmatch(f"{run.parent.name}/{run.name}"):
            found.append((run.parent.parent.name, float(match[1]), int(match[2]), run))
    return [run for *_, run in sorted(found)]


def _is_finished(run: Path) -> bool:
    return (run / "done.json").is_file() and any((run / "eval").glob("*.json"))
