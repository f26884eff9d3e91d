"""A grid's folder stands for its finished runs."""

from pathlib import Path

from shared.errors import DataError
from shared.grid_folders import cells_of, is_finished


def expand(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Replace every folder of a grid by those of its runs.

    Args:
        paths: Folders of runs and of grids; a run that is named twice counts once.

    Returns:
        Folders of runs, in the order given (of a grid by method, share of labels and seed), and those that had begun
        but are not finished and scored, and so are left out.

    Raises:
        DataError: A folder of neither, or a grid without a finished run.
    """
    runs: dict[Path, Path] = {}
    left_out: dict[Path, Path] = {}
    for path in paths:
        finished, unfinished = [path], []
        if path.is_dir() and not (path / "config.json").is_file():
            cells = cells_of(path)
            if not cells:
                raise DataError(
                    f"{path}: not a run directory (it has no config.json), and no grid's: no runs in it"
                )
            finished = [cell for cell in cells if is_finished(cell)]
            unfinished = [cell for cell in cells if cell not in finished]
            if not finished:
                raise DataError(f"{path}: none of the {len(cells)} runs of this grid is finished and scored")
        for found, all_found in ((finished, runs), (unfinished, left_out)):
            for run in found:
                all_found.setdefault(run.resolve(), run)
    return list(runs.values()), [run for place, run in left_out.items() if place not in runs]
