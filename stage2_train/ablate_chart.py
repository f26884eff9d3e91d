"""The chart of a grid: oIoU at the original size, mean and spread over seeds, as an SVG file that stands alone.

A panel a split. With several shares of labels or several overrides, lines over them, one a method (an arm where the
grid has both); else a row a method. The frozen prior's own score is a dashed line; of several priors each has a letter.
Bars reach one standard deviation from the mean. Shape tells the series as colour does; series beyond `SERIES` use the
colours again.

Frame: SVG user units, x to the right, y down.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import ascii_lowercase
from typing import Any

from shared.svg import SERIES, head, look
from stage2_train.label_share import percent_text
from stage2_train.report.charts import tick_texts, ticks

PANEL_WIDTH, PANEL_HEIGHT, GAP = 236, 190, 30
"""A panel's plot area (wider where its names need it) and what lies between panels."""
LEFT, RIGHT, TITLE, AXIS, ROW = 50, 14, 26, 72, 24
"""Room for the values on the left, on the right, for titles, for the axis below, and for a row of names."""
CHARACTER = 6.6
"""About the width of a character."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """What one line or one row shows."""

    label: str
    """Its name."""
    points: dict[int, tuple[float, float | None]]
    """(mean, standard deviation or None) by position on the axis of categories."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One split."""

    title: str
    """The split."""
    series: tuple[Series, ...]
    """What it shows."""
    priors: dict[str, float]
    """The frozen priors' own scores by name."""


def draw(answer: Mapping[str, Any]) -> str | None:
    """The chart of what `ablate.run_grid` returns; None where no cell is finished."""
    categories, panels = panels_of(answer)
    x_title = axis_title(categories)
    if not panels:
        return None
    labels = list(dict.fromkeys(one.label for panel in panels for one in panel.series))
    low, high = _range(panels)
    names = list(answer["prior"])
    letters = dict(zip(names, ascii_lowercase if len(names) > 1 else [""], strict=False))
    parts, width, height = (
        _lines(categories, x_title, panels, labels, letters, low, high)
        if len(categories) > 1
        else _rows(panels, labels, letters, low, high)
    )
    dashed = [f"dashed {letter}: {name}" for name, letter in letters.items() if letter]
    said = ["mean ± sd over seeds; oIoU, original size", *(dashed or ["dashed: the frozen prior alone"])]
    for line, text in enumerate(said):
        parts.append(f'<text {look("muted")} x="14" y="{height - 28 + 16 * line}">{escape(text)}</text>')
    height += 16 * (len(said) - 2)
    width = max(width, round(28 + CHARACTER * max(map(len, dashed), default=0)))
    described = ". ".join(_sentence(categories, panel) for panel in panels)
    first = head(width, height, "oIoU of each method of a grid", f"{described}.")
    return "\n".join([first, *parts, "</svg>\n"])


def panels_of(answer: Mapping[str, Any]) -> tuple[list[str], list[Panel]]:
    """Names along the axis (shares of labels, else overrides, else one that is not shown), and the panels."""
    rows = [row for row in answer["rows"] if (row["frame"], row["metric"]) == ("original", "oiou")]
    fractions = list(dict.fromkeys(row["fraction"] for row in rows))
    overrides = list(dict.fromkeys(row["arm"].partition("+")[2] for row in rows))
    over_fractions = len(fractions) > 1 or len(overrides) <= 1
    if over_fractions:
        fractions.sort()
        shares = {row["fraction"]: percent_text(row["label_share"]) for row in rows}
        categories = [shares[fraction] for fraction in fractions]
    else:
        categories = overrides
    panels = []
    for split in dict.fromkeys(row["split"] for row in rows):
        found: dict[str, dict[int, tuple[float, float | None]]] = {}
        for row in (row for row in rows if row["split"] == split):
            override = row["arm"].partition("+")[2]
            label = row["label"] if over_fractions else row["label"].removesuffix(f"+{override}")
            place = fractions.index(row["fraction"]) if over_fractions else overrides.index(override)
            found.setdefault(label, {})[place] = (row["mean"], row["sd"])
        panels.append(
            Panel(
                title=split,
                series=tuple(
                    Series(label=label, points=dict(sorted(points.items())))
                    for label, points in found.items()
                ),
                priors={
                    name: of_splits[split]["original"]["oiou"]
                    for name, of_splits in answer["prior"].items()
                    if split in of_splits
                },
            )
        )
    return categories, panels


def axis_title(categories: Sequence[str]) -> str:
    """What the axis of categories is: shares of labels, or overrides, by the word that all their names begin with."""
    if all(name.endswith("%") for name in categories):
        return "labelled images"
    first = {name.split("-")[0] for name in categories}
    return f"override: {first.pop()}" if len(first) == 1 else "override"


def _range(panels: Sequence[Panel]) -> tuple[float, float]:
    """What the axis of values spans: all bars and the priors, and a little more; bars are cut at 0 and 1."""
    ends = [prior for panel in panels for prior in panel.priors.values()]
    for panel in panels:
        for one in panel.series:
            ends += [mean + sign * (sd or 0.0) for mean, sd in one.points.values() for sign in (-1, 1)]
    pad = 0.06 * (max(ends) - min(ends)) or 0.05
    return max(0.0, min(ends) - pad), min(1.0, max(ends) + pad)


def _lines(
    categories: Sequence[str],
    x_title: str,
    panels: Sequence[Panel],
    labels: Sequence[str],
    letters: Mapping[str, str],
    low: float,
    high: float,
) -> tuple[list[str], float, float]:
    """Lines over the categories; (parts, width, height)."""
    step = max(PANEL_WIDTH / len(categories), CHARACTER * max(map(len, categories)) + 8)
    panel_width = round(step * len(categories))
    width = LEFT + len(panels) * (panel_width + GAP) - GAP + RIGHT
    parts, legend_height = _legend(labels, width)
    top = legend_height + TITLE

    def down(value: float) -> float:
        return round(top + PANEL_HEIGHT * (high - min(max(value, low), high)) / (high - low), 1)

    values = ticks(low, high, 5)
    for number, panel in enumerate(panels):
        left = LEFT + number * (panel_width + GAP)
        parts.append(f'<text {look("strong")} x="{left}" y="{top - 10}">{escape(panel.title)}</text>')
        for value, text in zip(values, tick_texts(values), strict=True):
            at = down(value)
            parts.append(f'<line {look("grid")} x1="{left}" x2="{left + panel_width}" y1="{at}" y2="{at}"/>')
            if number == 0:
                parts.append(f'<text {look("muted", "end")} x="{left - 7}" y="{at + 4}">{text}</text>')
        for place, name in enumerate(categories):
            at = round(left + step * (place + 0.5), 1)
            parts.append(
                f'<text {look("muted", "mid")} x="{at}" y="{top + PANEL_HEIGHT + 18}">{escape(name)}</text>'
            )
        middle = round(left + panel_width / 2, 1)
        parts.append(
            f'<text {look("mid")} x="{middle}" y="{top + PANEL_HEIGHT + 36}">{escape(x_title)}</text>'
        )
        for name, prior in panel.priors.items():
            at = down(prior)
            parts.append(
                f'<line {look("prior", "dashed")} x1="{left}" x2="{left + panel_width}" y1="{at}" y2="{at}"/>'
            )
            if letters[name]:
                parts.append(
                    f'<text {look("muted")} x="{left + panel_width + 4}" y="{at + 4}">{letters[name]}</text>'
                )
        for one in panel.series:
            index = labels.index(one.label)
            aside = (index - (len(labels) - 1) / 2) * min(5.0, 0.5 * step / len(labels))
            points = [
                (round(left + step * (place + 0.5) + aside, 1), mean, sd)
                for place, (mean, sd) in one.points.items()
            ]
            path = "L".join(f"{x} {down(mean)}" for x, mean, _ in points)
            parts.append(f'<path {look("line", f"l{index % SERIES}")} d="M{path}"/>')
            for x, mean, sd in points:
                if sd is not None:
                    parts.append(
                        f'<line {look("spread", f"l{index % SERIES}")} x1="{x}" x2="{x}" '
                        f'y1="{down(mean - sd)}" y2="{down(mean + sd)}"/>'
                    )
                parts.append(_marker(index, x, down(mean)))
    return parts, width, top + PANEL_HEIGHT + AXIS + 16


def _rows(
    panels: Sequence[Panel], labels: Sequence[str], letters: Mapping[str, str], low: float, high: float
) -> tuple[list[str], float, float]:
    """A row a method; (parts, width, height)."""
    names = 24 + CHARACTER * max(map(len, labels))
    width = round(names + len(panels) * (PANEL_WIDTH + GAP) - GAP + RIGHT)
    bottom = TITLE + ROW * len(labels)
    parts = [
        f'<text {look("end")} x="{names - 10:.0f}" y="{TITLE + ROW * (row + 0.5) + 4}">{escape(label)}</text>'
        for row, label in enumerate(labels)
    ]
    values = ticks(low, high, 4)
    for number, panel in enumerate(panels):
        left = round(names + number * (PANEL_WIDTH + GAP))

        def across(value: float, left: float = left) -> float:
            return round(left + PANEL_WIDTH * (min(max(value, low), high) - low) / (high - low), 1)

        parts.append(f'<text {look("strong")} x="{left}" y="16">{escape(panel.title)}</text>')
        for value, text in zip(values, tick_texts(values), strict=True):
            at = across(value)
            parts.append(f'<line {look("grid")} x1="{at}" x2="{at}" y1="{TITLE}" y2="{bottom}"/>')
            parts.append(f'<text {look("muted", "mid")} x="{at}" y="{bottom + 16}">{text}</text>')
        for name, prior in panel.priors.items():
            at = across(prior)
            parts.append(f'<line {look("prior", "dashed")} x1="{at}" x2="{at}" y1="{TITLE}" y2="{bottom}"/>')
            if letters[name]:
                parts.append(f'<text {look("muted", "mid")} x="{at}" y="{TITLE - 2}">{letters[name]}</text>')
        for one in panel.series:
            y = TITLE + ROW * (labels.index(one.label) + 0.5)
            for mean, sd in one.points.values():
                if sd is not None:
                    parts.append(
                        f'<line {look("spread", "l0")} x1="{across(mean - sd)}" x2="{across(mean + sd)}" '
                        f'y1="{y}" y2="{y}"/>'
                    )
                parts.append(_marker(0, across(mean), y))
    return parts, width, bottom + AXIS


def _legend(labels: Sequence[str], width: float) -> tuple[list[str], float]:
    """Markers with names, in as many lines as they need; (parts, height)."""
    parts, x, y = [], float(LEFT), 18.0
    for index, label in enumerate(labels):
        wide = 34 + CHARACTER * len(label)
        if x > LEFT and x + wide > width:
            x, y = float(LEFT), y + 20
        parts.append(_marker(index, x + 6, y - 4))
        parts.append(f'<text x="{x + 16:.1f}" y="{y:.1f}">{escape(label)}</text>')
        x += wide
    return parts, y + 10


def _marker(index: int, x: float, y: float) -> str:
    """A disc, a square, a triangle or a diamond, in the colour of the series."""
    style, shape = f"f{index % SERIES}", index % 4
    if shape == 0:
        return f'<circle {look(style)} cx="{x}" cy="{y}" r="4.2"/>'
    path = {1: "m-4 -4h8v8h-8z", 2: "m0 -5.5l5.2 9.2h-10.4z", 3: "m0 -5.6l5.6 5.6l-5.6 5.6l-5.6 -5.6z"}
    return f'<path {look(style)} d="M{x} {y}{path[shape]}"/>'


def _sentence(categories: Sequence[str], panel: Panel) -> str:
    """A panel in words, for those who cannot see it."""
    priors = [f"{name} {prior:.3f}" for name, prior in panel.priors.items()]
    said = [f"{panel.title}: {', '.join(priors)}" if priors else panel.title]
    for one in panel.series:
        means = (
            f"{mean:.3f}" + (f" at {categories[place]}" if len(categories) > 1 else "")
            for place, (mean, _) in one.points.items()
        )
        said.append(f"{one.label} " + ", ".join(means))
    return "; ".join(said)
