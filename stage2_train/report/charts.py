"""Geometry of the charts: numbers in, positions and labels out; the template draws them as SVG.

Frame: SVG user units, x to the right, y down. Colours, dashes and fonts belong to the style sheet, so one chart reads
in light, dark and print. Every chart carries a text summary and its numbers as a table, for those who cannot see it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 290
"""Size of a line chart, user units."""
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46
"""Margins of a line chart that hold the axis labels, user units; the left one is wider where its figures are."""
AXIS_NAME, DIGIT = 29, 7
"""User units that the name of the vertical axis takes with what is free around it, and a character of its figures."""
MAX_POINTS = 160
"""Points drawn per line; longer curves are averaged over equal stretches of steps."""
MAX_TABLE_ROWS = 12
"""Rows in the table beside a chart."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve."""

    label: str
    """Its name in the legend."""
    points: tuple[tuple[float, float], ...]
    """(x, y) by rising x, all finite."""
    style: int = 0
    """Which colour and dash of the palette."""


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """A line chart ready to draw."""

    title: str
    """Heading above the chart."""
    note: str
    """One sentence of explanation, or empty."""
    x_label: str
    """Axis name with its unit."""
    y_label: str
    """Axis name with its unit."""
    x_ticks: list[tuple[float, str]]
    """(position, label)."""
    y_ticks: list[tuple[float, str]]
    """(position, label)."""
    lines: list[dict]
    """label, style, path and points of each curve."""
    summary: str
    """What a screen reader says."""
    table: list[list[str]]
    """Header row, then rows."""
    hover: dict
    """Positions and values for the read-out: `x`, `label`, and for each line `label` and `y`."""
    markers: bool
    """Whether each point is marked."""
    width: int = WIDTH
    """User units."""
    height: int = HEIGHT
    """User units."""
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    """Plot area: left, top, right, bottom."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One row of a dot plot."""

    label: str
    """Name of the row."""
    value: float
    """Where the dot stands."""
    kind: str
    """`run`, `prior` or `published`: shape and colour."""
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None
    """Upper end of the interval."""
    short: str = ""
    """Its name where there is little room; "" if it is the same."""


@dataclass(frozen=True, kw_only=True)
class DotPlot:
    """A dot plot ready to draw."""

    title: str
    """Heading above the plot."""
    x_label: str
    """Axis name with its unit."""
    x_ticks: list[tuple[float, str]]
    """(position, label)."""
    rows: list[dict]
    """label, y, x, x_low, x_high, kind and text of each dot."""
    guide_x: float | None
    """Position of the vertical line at the frozen prior's value."""
    summary: str
    """What a screen reader says."""
    width: int
    """User units."""
    height: int
    """User units."""
    left: int
    """Where the plot area begins."""
    right: int
    """Where the plot area ends; the figures stand to the right of it."""


def line_chart(
    lines: list[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    note: str = "",
    unit_interval: bool = False,
    categories: list[str] | None = None,
) -> LineChart | None:
    """Lay out a line chart.

    Args:
        lines: The curves; those without a point are dropped.
        title: Heading.
        x_label: Name and unit of the horizontal axis.
        y_label: Name and unit of the vertical axis.
        note: A sentence under the heading.
        unit_interval: The values are shares in [0, 1]: start at 0 unless they lie close together far from it.
        categories: Labels of x = 0, 1, ...; the points are then marked.

    Returns:
        None if no curve has a point.
    """
    drawn = [
        Line(label=line.label, points=_thin(line.points), style=line.style) for line in lines if line.points
    ]
    if not drawn:
        return None
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    x_low, x_high = (-0.5, len(categories) - 0.5) if categories else _x_range(min(xs), max(xs))
    y_low, y_high = _y_range(min(ys), max(ys), unit_interval)
    y_values = ticks(y_low, y_high, 5)
    y_texts = tick_texts(y_values)
    left = max(LEFT, AXIS_NAME + DIGIT * max(map(len, y_texts), default=0))
    box = (left, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)

    def place(x: float, y: float) -> tuple[float, float]:
        right = box[0] + (x - x_low) / (x_high - x_low) * (box[2] - box[0])
        down = box[3] - (y - y_low) / (y_high - y_low) * (box[3] - box[1])
        return round(right, 1), round(down, 1)

    steps = [value for value in ticks(x_low, x_high, 6) if abs(value - round(value)) < 1e-6]
    x_values = [float(at) for at in range(len(categories))] if categories else steps
    x_texts = categories or tick_texts(x_values)
    placed = [
        {
            "label": line.label,
            "style": line.style,
            "path": "M" + "L".join("{} {}".format(*place(x, y)) for x, y in line.points),
            "points": [place(x, y) for x, y in line.points],
        }
        for line in drawn
    ]
    return LineChart(
        title=title,
        note=note,
        x_label=x_label,
        y_label=y_label,
        x_ticks=[(place(x, y_low)[0], text) for x, text in zip(x_values, x_texts, strict=True)],
        y_ticks=[(place(x_low, y)[1], text) for y, text in zip(y_values, y_texts, strict=True)],
        box=box,
        lines=placed,
        summary=_summary(title, x_label, y_label, drawn, categories),
        table=_table(x_label, drawn, categories),
        hover=_hover(drawn, place, categories),
        markers=bool(categories) or max(len(line.points) for line in drawn) <= 24,
    )


def dot_plot(dots: list[Dot], *, title: str, x_label: str) -> DotPlot | None:
    """Lay out a dot plot of shares, one row per entry, the frozen prior's value as a guide line.

    Returns:
        None without an entry.
    """
    if not dots:
        return None
    row_height, top, right, width = 26, 8, 58, WIDTH
    left = 20 + min(210, 8 * max(len(dot.short or dot.label) for dot in dots))
    ends = [end for dot in dots for end in (dot.value, dot.high) if end is not None]
    x_high = min(1.0, math.ceil(max(ends) * 10 + 0.3) / 10)

    def place(x: float) -> float:
        return round(left + x / x_high * (width - left - right), 1)

    rows = [
        {
            "label": _shorten(dot.short or dot.label, 27),
            "full": dot.label,
            "y": top + row_height * index + row_height / 2,
            "x": place(dot.value),
            "x_low": None if dot.low is None else place(max(0.0, dot.low)),
            "x_high": None if dot.high is None else place(min(x_high, dot.high)),
            "kind": dot.kind,
            "text": f"{dot.value:.3f}",
        }
        for index, dot in enumerate(dots)
    ]
    values = ticks(0.0, x_high, 6)
    prior = next((dot.value for dot in dots if dot.kind == "prior"), None)
    return DotPlot(
        title=title,
        x_label=x_label,
        x_ticks=[(place(value), text) for value, text in zip(values, tick_texts(values), strict=True)],
        rows=rows,
        guide_x=None if prior is None else place(prior),
        summary=f"{title}. " + "; ".join(f"{dot.label} {dot.value:.3f}" for dot in dots) + ".",
        width=width,
        height=top + row_height * len(dots) + 44,
        left=left,
        right=width - right,
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    span = (high - low) / most
    power = 10.0 ** math.floor(math.log10(span))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_texts(values: list[float]) -> list[str]:
    """Labels with as many decimals as tell the values apart."""
    gap = min(
        (abs(b - a) for a, b in zip(values, values[1:], strict=False)),
        default=abs(values[0]) if values else 1.0,
    )
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap > 0 else 0
    if decimals > 4:
        digits = decimals + 1 + math.floor(math.log10(max(map(abs, values))) + 1e-9)
        return [f"{value:.{digits}g}" for value in values]
    return [f"{value:,.{decimals}f}" for value in values]


def _thin(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """Means over equal stretches, so that at most `MAX_POINTS` remain."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups)


def _widen(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    pad = abs(low) * 0.1 or 1.0
    return low - pad, high + pad


def _x_range(low: float, high: float) -> tuple[float, float]:
    """The data's range; from 0 if it nearly begins there, up to the next tick if it nearly ends there."""
    low, high = _widen(low, high)
    low = 0.0 if 0 <= low <= 0.1 * high else low
    marks = ticks(low, high, 6)
    step = marks[1] - marks[0]
    reach = math.ceil(high / step - 1e-9) * step
    return low, reach if reach - high <= 0.05 * (high - low) else high


def _y_range(low: float, high: float, unit_interval: bool) -> tuple[float, float]:
    """A little more than the data's range; shares start at 0 unless they lie close together far from it."""
    pad = (high - low) * 0.06 or abs(low) * 0.1 or 0.5
    bottom, top = low - pad, high + pad
    if low >= 0:
        bottom = 0.0 if unit_interval and low < 0.6 * high else max(0.0, bottom)
    if unit_interval and high <= 1:
        top = min(1.0, top)
    return bottom, top


def _summary(title: str, x_label: str, y_label: str, lines: list[Line], categories: list[str] | None) -> str:
    parts = []
    for line in lines:
        first, last = line.points[0], line.points[-1]
        x_first, x_last = (categories[int(p[0])] if categories else f"{p[0]:g}" for p in (first, last))
        parts.append(f"{line.label}: {first[1]:.3g} at {x_first}, {last[1]:.3g} at {x_last}")
    return f"{title}. {y_label} against {x_label}. " + "; ".join(parts) + "."


def _table(x_label: str, lines: list[Line], categories: list[str] | None) -> list[list[str]]:
    """Header and at most `MAX_TABLE_ROWS` rows; a curve without a point near a row shows a dash."""
    xs = sorted({x for line in lines for x, _ in line.points})
    if len(xs) > MAX_TABLE_ROWS:
        xs = [xs[round(index * (len(xs) - 1) / (MAX_TABLE_ROWS - 1))] for index in range(MAX_TABLE_ROWS)]
    values = [dict(line.points) for line in lines]
    rows = [
        [categories[int(x)] if categories else f"{x:,.0f}"]
        + [f"{column[x]:.4g}" if x in column else "–" for column in values]
        for x in xs
    ]
    return [[x_label, *(line.label for line in lines)], *rows]


def _hover(
    lines: list[Line], place: Callable[[float, float], tuple[float, float]], categories: list[str] | None
) -> dict:
    xs = sorted({x for line in lines for x, _ in line.points})
    values = [dict(line.points) for line in lines]
    return {
        "x": [place(x, 0)[0] for x in xs],
        "label": [categories[int(x)] if categories else f"{x:,.0f}" for x in xs],
        "lines": [
            {"label": line.label, "y": [None if x not in column else float(f"{column[x]:.4g}") for x in xs]}
            for line, column in zip(lines, values, strict=True)
        ],
    }


def _shorten(text: str, most: int) -> str:
    """Cut in the middle: names differ at their ends as often as at their beginnings."""
    half = (most - 1) // 2
    return text if len(text) <= most else text[: most - 1 - half] + "…" + text[-half:]
