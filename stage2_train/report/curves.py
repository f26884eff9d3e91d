"""The curves of a run: which scalar of `metrics.jsonl` belongs to which chart.

A panel either compares runs (one scalar, one line for each run) or shows parts of one run (several scalars, one chart
for each run). Scalars no panel claims are drawn too, so that nothing logged stays unseen.
"""

from dataclasses import dataclass, replace

from stage2_train.report.charts import Line, LineChart, line_chart
from stage2_train.report.run_data import RunData, finite

MAX_LINES = 8
"""Lines in one chart; the palette has as many."""
PRIOR_STYLE = MAX_LINES
"""Style of the frozen prior's line, which no run's has."""
_OF_PRIOR = ("prior_iou", "disputed_prior_right")
"""Scalars that are the frozen prior's."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One kind of chart."""

    title: str
    """Heading."""
    y_label: str
    """Axis name with its unit."""
    series: tuple[tuple[str, str], ...]
    """(name in the legend, scalar of the log)."""
    note: str = ""
    """A sentence under the heading."""
    per_run: bool = False
    """One chart for each run, one line for each scalar; otherwise one line for each run."""
    unit_interval: bool = False
    """The values are shares in [0, 1]."""
    kind: str = "train"
    """Records it reads: `train` or `val`."""
    over: str = ""
    """Scalar that its others are divided by, step by step; "" draws them as they are."""


PANELS: tuple[Panel, ...] = (
    Panel(
        title="Validation oIoU",
        y_label="oIoU (share of 1)",
        series=(("oIoU", "oiou_original"),),
        note="Original image size.",
        unit_interval=True,
        kind="val",
    ),
    Panel(title="Total loss", y_label="loss", series=(("total", "loss"),)),
    Panel(
        title="Loss on labelled samples",
        y_label="loss",
        series=(("labelled", "labelled_loss"),),
    ),
    Panel(
        title="Loss on pseudo-labels",
        y_label="loss",
        series=(("unlabelled", "unlabelled_loss"),),
    ),
    Panel(
        title="Frozen prior, weak view and what they are fused to",
        y_label="mean IoU (share of 1)",
        series=(
            ("frozen prior", "prior_iou"),
            ("weak view (Pw)", "weak_iou"),
            ("map the labels are cut from", "fused_iou"),
        ),
        note="Measured on unlabelled samples against masks that training never reads: a diagnosis, not a signal.",
        per_run=True,
        unit_interval=True,
    ),
    Panel(
        title="Coverage",
        y_label="share of pixels",
        series=(("coverage", "coverage"),),
        note="Pixels of unlabelled images that are taught as foreground or background; the rest is ignored.",
        unit_interval=True,
    ),
    Panel(
        title="Selected pixels",
        y_label="share of pixels",
        series=(("accuracy", "selected_accuracy"), ("foreground recall", "foreground_recall")),
        note="Background is easy, so high accuracy can mislead: read it with the recall.",
        per_run=True,
        unit_interval=True,
    ),
    Panel(
        title="Where frozen prior and weak view disagree",
        y_label="share of those pixels",
        series=(
            ("the prior is right", "disputed_prior_right"),
            ("the pixel is taught", "disputed_taught"),
            ("and taught rightly", "disputed_taught_right"),
        ),
        over="disputed",
        note="Whoever is right more often there is whom a fusion should follow. Measured as above.",
        per_run=True,
        unit_interval=True,
    ),
    Panel(
        title="Thresholds of the pseudo-labels",
        y_label="probability",
        series=(("foreground (τ fg)", "tau_fg"), ("background (τ bg)", "tau_bg")),
        per_run=True,
        unit_interval=True,
    ),
    Panel(
        title="Reward of the threshold policy",
        y_label="reward (clipped to ±0.5)",
        series=(("reward", "reward"),),
    ),
)
"""Panels in the order of the page; no two claim one scalar."""

NOT_CURVES = ("step", "seconds", "num")
"""Numbers of a record that say when, not how well."""


def curve_charts(runs: list[RunData]) -> tuple[list[LineChart], list[LineChart]]:
    """Charts of the known scalars, and charts of the others.

    Args:
        runs: At most the first `MAX_LINES` are drawn.
    """
    runs = runs[:MAX_LINES]
    main: list[LineChart] = []
    for panel in PANELS:
        main += _run_charts(panel, runs) if panel.per_run else _comparison(panel, runs)
    claimed = {(panel.kind, name) for panel in PANELS for _, name in (*panel.series, ("", panel.over))}
    names = sorted({name for run in runs for name in scalar_names(run)} - claimed)
    others = []
    for kind, name in names:
        lines = [
            Line(label=run.name, points=_points(run, kind, name), style=index)
            for index, run in enumerate(runs)
        ]
        chart = line_chart(
            lines, title=f"{name} ({kind})" if kind else name, x_label="optimiser step", y_label=name
        )
        others += [chart] if chart else []
    return main, others


def scalar_names(run: RunData) -> list[tuple[str, str]]:
    """(kind, name) of every number the run logged, in order of first appearance."""
    names: dict[tuple[str, str], None] = {}
    for record in run.metrics:
        if record.get("kind") == "resume":
            continue
        for name, value in record.items():
            if name not in NOT_CURVES and finite(value) is not None:
                names[str(record.get("kind", "")), name] = None
    return list(names)


def _comparison(panel: Panel, runs: list[RunData]) -> list[LineChart]:
    lines = []
    for index, run in enumerate(runs):
        found = _series(panel, run)
        lines += [Line(label=run.name, points=points, style=index) for _, points in found[:1]]
    if panel.kind == "val" and lines:
        panel = replace(panel, note=f"{panel.note} {_validated_on(runs)}".strip())
    chart = _chart(panel, lines, panel.title)
    return [chart] if chart else []


def _validated_on(runs: list[RunData]) -> str:
    """How many sentences of which split each validation was on, as far as the runs say."""
    found: dict[str, None] = {}
    for run in runs:
        split = run.settings("val_split")
        nums = [finite(row.get("num")) for row in run.metrics if row.get("kind") == "val"]
        num = next((num for num in reversed(nums) if num), None)
        if split and num:
            found[f"{num:,.0f} sentences of {split}"] = None
    return f"On {' or '.join(found)}." if found else ""


def _run_charts(panel: Panel, runs: list[RunData]) -> list[LineChart]:
    charts = []
    for run in runs:
        styles = _styles(panel)
        lines = [
            Line(label=label, points=points, style=styles[label]) for label, points in _series(panel, run)
        ]
        title = f"{panel.title}: {run.name}" if len(runs) > 1 else panel.title
        chart = _chart(panel, lines, title)
        charts += [chart] if chart else []
    return charts


def _styles(panel: Panel) -> dict[str, int]:
    """Style of each line by its label; beside the prior's not 1, whose colour is close to it."""
    names = [name for _, name in panel.series]
    free = iter([0, *range(2, MAX_LINES)] if any(name in _OF_PRIOR for name in names) else range(MAX_LINES))
    return {label: PRIOR_STYLE if name in _OF_PRIOR else next(free) for label, name in panel.series}


def _chart(panel: Panel, lines: list[Line], title: str) -> LineChart | None:
    return line_chart(
        lines,
        title=title,
        x_label="optimiser step",
        y_label=panel.y_label,
        note=panel.note,
        unit_interval=panel.unit_interval,
    )


def _series(panel: Panel, run: RunData) -> list[tuple[str, tuple[tuple[float, float], ...]]]:
    """(legend entry, points) of each entry that the run logged something for."""
    logged = set(scalar_names(run))
    return [
        (label, _points(run, panel.kind, name, panel.over))
        for label, name in panel.series
        if (panel.kind, name) in logged
    ]


def _points(run: RunData, kind: str, name: str, over: str = "") -> tuple[tuple[float, float], ...]:
    """(step, value) by rising step; a step logged twice (after a resume) keeps its last value.

    With `over` the value is divided by that one, and left out where it is 0.
    """
    values: dict[float, float] = {}
    for record in run.metrics:
        step, value = finite(record.get("step")), finite(record.get(name))
        whole = finite(record.get(over)) if over else 1.0
        if step is not None and value is not None and whole and str(record.get("kind", "")) == kind:
            values[step] = value / whole
    return tuple(sorted(values.items()))
