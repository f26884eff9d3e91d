"""Gather what the benches printed into one table: every ratio and every aim, the aim beside it where there is one.

    python tests/bench/table.py OUTPUT.txt ... [--json FIGURES.json]

An OUTPUT is what a `bench_*.py` printed; a figure found twice counts as it was printed last. The table is Markdown on
stdout. `--json` writes all figures, ratios or not, with the machine they were gathered on, for `chart.py`.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from figures import VERDICTS, Figure

from shared.errors import DataError, short

HEAD = '{"bench": '
"""How a line with a figure begins; other lines are for people."""
FIELDS = {field.name for field in dataclasses.fields(Figure)}


def read_figures(path: Path) -> dict[tuple[str, str], Figure]:
    """Figures of one bench's output, by bench and name.

    Raises:
        DataError: A line that begins like a figure is none, or there is no figure.
    """
    found = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.startswith(HEAD):
            continue
        try:
            record = json.loads(line)
            one = Figure(**{name: value for name, value in record.items() if name in FIELDS})
        except (json.JSONDecodeError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a figure: {short(line)}") from error
        found[str(record["bench"]), one.name] = one
    if not found:
        raise DataError(f"{path}: no figure in it; the bench did not finish")
    return found


def number_text(value: float) -> str:
    """Three digits, or whole numbers from a hundred on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(figures: Iterable[tuple[str, Figure]]) -> str:
    """The Markdown table of ratios and of figures with an aim."""
    rows = [["bench", "figure", "median", "range", "aim", "", "note"]]
    for bench, one in figures:
        if one.unit != "x" and not one.target:
            continue
        unit = f" {one.unit}".rstrip()
        spread = "" if one.low == one.high else f"{number_text(one.low)} to {number_text(one.high)}"
        verdict = VERDICTS[one.met]
        rows.append(
            [bench, one.name.strip(), number_text(one.value) + unit, spread, one.target, verdict, one.note]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where and when: rates mean little without."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 if a file cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("outputs", type=Path, nargs="+", help="what the benches printed")
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args(arguments)
    figures: dict[tuple[str, str], Figure] = {}
    try:
        for path in args.outputs:
            figures |= read_figures(path)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table((bench, one) for (bench, _), one in figures.items()))
    if args.json:
        records = [{"bench": bench, **dataclasses.asdict(one)} for (bench, _), one in figures.items()]
        args.json.write_text(
            json.dumps({"machine": machine(), "figures": records}, indent=1) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
