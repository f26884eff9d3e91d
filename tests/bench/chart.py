"""Draw what `bench_peers.py` measured: rows per second of every way to keep rows, as an SVG file that stands alone.

    python tests/bench/chart.py FIGURES.json OUT.svg

FIGURES.json is what `table.py --json` wrote. Three panels share one list of names: random batches and shuffled epochs
by the number of rows, and shuffled epochs by the number of workers. Shape tells the series as colour does (Okabe and
Ito's palette); the background is the file's own, light or dark as the reader's system is.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench_peers import ROWS_WITH_WORKERS
from peers import PEERS, STORE

from shared.errors import DataError
from shared.svg import head, look

NAME_WIDTH, PANEL_WIDTH, GAP = 112, 218, 40
"""Widths of the names, of a panel's axis and of what lies between panels, user units."""
TOP, ROW, BOTTOM = 64, 27, 74
"""Heights above the rows, of a row, and of axis and source below, user units."""


def read_rates(path: Path) -> tuple[dict[tuple[str, str, int, int], float], dict[str, Any]]:
    """Rows/s by (contender, what, rows, workers), and the machine.

    Raises:
        DataError: The file is not one of `table.py`, or holds no rates of the peers.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        rates = {
            (of["peer"], of["what"], of["rows"], of["workers"]): float(one["value"])
            for one in content["figures"]
            if (of := one["of"]) and of["what"] in ("random", "epoch")
        }
        about = content["machine"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a file of table.py: {error!r}") from error
    if not rates:
        raise DataError(f"{path}: no figure of bench_peers in it")
    return rates, about


def marker(series: int, x: float, y: float) -> str:
    """A disc, a square or a triangle."""
    if series == 0:
        return f'<circle {look("f0")} cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    if series == 1:
        return f'<rect {look("f1")} x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    return f'<path {look("f2")} d="M{x:.1f} {y - 5.5:.1f}l5.5 9.5h-11z"/>'


def panel(
    left: float,
    title: str,
    names: Sequence[str],
    series: Sequence[tuple[str, dict[str, float]]],
    decades: tuple[int, int],
) -> list[str]:
    """One panel: title, legend, axis and markers; a line joins what belongs to one contender."""
    low, high = decades
    bottom = TOP + ROW * len(names)

    def place(rate: float) -> float:
        return left + PANEL_WIDTH * (math.log10(rate) - low) / (high - low)

    parts = [f'<text {look("strong")} x="{left}" y="22">{escape(title)}</text>']
    x = left
    for index, (label, _) in enumerate(series):
        parts.append(marker(index, x + 5, 42) + f'<text {look("muted")} x="{x + 14}" y="46">{label}</text>')
        x += 26 + 6.6 * len(label)
    for decade in range(low, high + 1):
        at = place(10.0**decade)
        parts.append(f'<line {look("grid")} x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        text = f"{10**decade // 1000}k" if decade >= 3 else f"{10**decade}"
        parts.append(f'<text {look("muted", "mid")} x="{at:.1f}" y="{bottom + 17}">{text}</text>')
    parts.append(f'<text {look("muted")} x="{left}" y="{bottom + 35}">rows per second, logarithmic</text>')
    for row, name in enumerate(names):
        y = TOP + ROW * (row + 0.5)
        points = [(index, place(rates[name])) for index, (_, rates) in enumerate(series) if name in rates]
        if not points:
            parts.append(f'<text {look("muted")} x="{left + 4}" y="{y + 4:.1f}">no reading</text>')
            continue
        ends = [x for _, x in points]
        parts.append(
            f'<line {look("span")} x1="{min(ends):.1f}" x2="{max(ends):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts += [marker(index, x, y) for index, x in points]
    return parts


def draw(rates: dict[tuple[str, str, int, int], float], about: dict[str, Any]) -> str:
    """The whole chart."""
    order = [STORE.name, *(peer.name for peer in PEERS.values())]
    measured = {name for name, *_ in rates}
    names = [name for name in order if name in measured]
    sizes = sorted({rows for _, _, rows, _ in rates})[:3]
    workers = sorted({workers for _, _, _, workers in rates})[:3]

    def pick(what: str, rows: int, workers: int) -> dict[str, float]:
        return {name: rates[key] for name in names if (key := (name, what, rows, workers)) in rates}

    by_rows = [
        [(f"{rows:,} rows", pick(what, rows, 0)) for rows in sizes if pick(what, rows, 0)]
        for what in ("random", "epoch")
    ]
    by_workers = [
        (f"{count} worker" + "s" * (count != 1), pick("epoch", ROWS_WITH_WORKERS, count)) for count in workers
    ]
    candidates = [
        ("random batches of 32", by_rows[0]),
        ("shuffled epoch, no workers", by_rows[1]),
        (f"shuffled epoch, {ROWS_WITH_WORKERS:,} rows", [one for one in by_workers if one[1]]),
    ]
    panels = [(title, series) for title, series in candidates if series]
    low, high = (
        math.floor(math.log10(min(rates.values()))),
        math.ceil(math.log10(max(rates.values()))),
    )
    width = NAME_WIDTH + len(panels) * (PANEL_WIDTH + GAP) - 12
    height = TOP + ROW * len(names) + BOTTOM
    lines = [
        f"{title}, {label}, rows/s: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in found.items())
        for title, series in panels
        for label, found in series
    ]
    heading = "Rows per second of the prior store and of other ways to keep rows"
    parts = [
        head(width, height, heading, ". ".join(lines) + "."),
        f'<rect {look("band")} x="4" y="{TOP}" width="{width - 8}" height="{ROW}" rx="4"/>',
    ]
    for row, name in enumerate(names):
        looks = look("end", "strong") if name == STORE.name else look("end")
        y = TOP + ROW * (row + 0.5) + 4
        parts.append(f'<text {looks} x="{NAME_WIDTH - 12}" y="{y:.1f}">{escape(name)}</text>')
    for index, (title, series) in enumerate(panels):
        parts += panel(NAME_WIDTH + index * (PANEL_WIDTH + GAP), title, names, series, (low, high))
    source = f"medians; {about['date']}, {about['cores']} cores, load {about['load']} at the end"
    parts.append(f'<text {look("muted")} x="{NAME_WIDTH}" y="{height - 14}">{escape(source)}</text></svg>')
    return "\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the chart; 2 if the figures cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", type=Path, help="what `table.py --json` wrote")
    parser.add_argument("out", type=Path, help="the SVG file")
    args = parser.parse_args(arguments)
    try:
        rates, about = read_rates(args.figures)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    args.out.write_text(draw(rates, about), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
