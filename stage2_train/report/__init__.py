"""The report: run directories in, one self-contained HTML file and a short text table out.

`collect` reads what the runs left on disk, `charts`, `curves`, `tables`, `notices` and `gallery` turn it into plain
data and SVG, `page` fills the template. `taught` alone loads networks, to make their last pseudo-labels again. Nothing
is trained or fetched.
"""

from pathlib import Path


def write_report(runs: list[Path], out: Path | None = None) -> tuple[Path, str]:
    """Write the report of `runs`.

    Args:
        runs: Folders of runs, and of grids, which stand for their finished runs; the first is the main one.
        out: The HTML file; default `report.html` in the folder, of several `comparison.html` in the first.

    Returns:
        The file written, and a short table to print (with warnings below it, if there are any).

    Raises:
        DataError: No run given, or a directory that holds none.
    """
    from stage2_train.report.page import write_page

    return write_page([Path(run) for run in runs], out)
