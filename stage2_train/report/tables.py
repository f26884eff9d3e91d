"""The headline: every run, the frozen prior alone and the published figures, with both resolutions named."""

from dataclasses import dataclass

from shared.grid_folders import CELL
from stage2_train.label_share import percent_text
from stage2_train.report.charts import Dot, DotPlot, dot_plot
from stage2_train.report.reference import SOURCE, published
from stage2_train.report.run_data import EvalData, RunData, in_report_order
from stage2_train.report.stats import overall_interval

METRICS = ("oiou", "miou", "pr@0.5", "pr@0.7", "pr@0.9")
"""Metrics of the headline table at the original size; at the model's resolution the first `NUM_SHORT` are shown."""
NUM_SHORT = 3
"""Metrics where there is room for few."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the headline table."""

    label: str
    """Run name, `frozen prior alone`, or a published method."""
    kind: str
    """`run`, `prior` or `published`."""
    method: str
    """Training method; empty for the others."""
    seed: str
    """Seed, or empty."""
    labels: str
    """Share and number of labelled images, references."""
    num: int | None
    """Sentences scored."""
    data: str
    """Data set of the sentences and its split; empty for published figures."""
    original: tuple[float | None, ...]
    """`METRICS` at the image's own size."""
    model: tuple[float | None, ...]
    """`METRICS` at the model's resolution."""
    short: str = ""
    """The label where there is little room; "" if it is the same."""
    published: float | None = None
    """A printed oIoU, whose source does not say at which resolution it was measured."""

    @property
    def oiou(self) -> float | None:
        """What the plot shows: the original size, or the printed figure."""
        return self.original[0] if self.published is None else self.published


@dataclass(frozen=True, kw_only=True)
class SplitTable:
    """The headline of one split."""

    split: str
    """Name of the split."""
    resolution: str
    """The model's resolution, for example `128×128`; several are joined by `or`."""
    sentences: str
    """Sentences scored, `20 sentences` or, of several data sets or parts, `20 to 50 sentences of 2 data sets`."""
    of_several: bool
    """Whether the rows are of several data sets."""
    rows: list[Row]
    """Supervised runs, the frozen prior, other runs, published figures."""
    plot: DotPlot | None
    """oIoU of every row."""


def split_tables(runs: list[RunData]) -> list[SplitTable]:
    """One table for each split any run was scored on."""
    splits = in_report_order([split for run in runs for split in run.evals])
    return [_split_table(split, runs) for split in dict.fromkeys(splits)]


def _split_table(split: str, runs: list[RunData]) -> SplitTable:
    scored = [run for run in runs if split in run.evals]
    supervised = [run for run in scored if run.method == "supervised"]
    others = [run for run in scored if run.method != "supervised"]
    names = short_names([run.name for run in runs])
    rows = [row for run in supervised for row in _run_rows(run, run.evals[split], names[run.name])]
    rows += _prior_rows(scored, split)
    rows += [row for run in others for row in _run_rows(run, run.evals[split], names[run.name])]
    rows += _published_rows(scored, split)
    sizes = [run.evals[split].resolution_hw for run in scored]
    texts = dict.fromkeys(f"{size[0]}×{size[1]}" for size in sizes if size)
    intervals = {run.name: overall_interval(run.evals[split]) for run in scored}
    dots = []
    for row in rows:
        if row.oiou is not None:
            interval = intervals.get(row.label) if row.kind == "run" else None
            ends = (interval.low, interval.high) if interval else (None, None)
            dots.append(
                Dot(
                    label=row.label, short=row.short, value=row.oiou, kind=row.kind, low=ends[0], high=ends[1]
                )
            )
    return SplitTable(
        split=split,
        resolution=" or ".join(texts) or "model input",
        of_several=len({row.data for row in rows if row.data}) > 1,
        sentences=_sentences_text(rows),
        rows=rows,
        plot=dot_plot(dots, title=split, x_label="oIoU (share of 1)"),
    )


def short_names(names: list[str]) -> dict[str, str]:
    """Names of a grid's runs without what all share: `supervised, seed 22`; those of other runs as they are."""
    parts = [name.split("/") for name in names]
    if len(names) < 2 or not all(CELL.fullmatch("/".join(own[-2:])) for own in parts):
        return {name: name for name in names}
    parts = [["/".join(own[:-2]), *own[-2:]] for own in parts]
    differ = [place for place in range(3) if len({own[place] for own in parts}) > 1]

    def said(part: str) -> str:
        kind, _, value = part.partition("-")
        if kind == "fraction":
            return f"{percent_text(float(value))} labels"
        return f"seed {value}" if kind == "seed" else part

    return {
        name: ", ".join([own[0], *(said(own[place]) for place in differ if place)])
        for name, own in zip(names, parts, strict=True)
    }


def _data_name(run: RunData, data: EvalData) -> str:
    """Which data set scored sentences are of, and its split: `refcoco (unc)`."""
    scored = data.summary.get("data")
    found = scored if isinstance(scored, dict) and scored.get("dataset") else run.data
    return f"{found.get('dataset', 'unknown')} ({found.get('split_by', 'unknown')})"


def _sentences_text(rows: list[Row]) -> str:
    """`SplitTable.sentences`."""
    num_sets = len({row.data for row in rows if row.data})
    counts = sorted({row.num for row in rows if row.num is not None})
    if not counts:
        return ""
    text = f"{counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "") + " sentences"
    return text + (f" of {num_sets} data sets" if num_sets > 1 else "")


def _run_rows(run: RunData, data: EvalData, short: str) -> list[Row]:
    """The run, and its second passes where they were scored too."""
    rows = []
    for source, suffix in (
        ("", ""),
        ("self_guided", ", self-guided"),
        ("with_prior", ", with prior (another method)"),
    ):
        if source and data.score("original", "oiou", source=source) is None:
            continue
        row = Row(
            label=run.name + suffix,
            short=short + suffix,
            kind="run",
            method=run.method + suffix,
            seed="" if run.seed is None else str(run.seed),
            labels=labels_text(run),
            num=data.num,
            data=_data_name(run, data),
            original=tuple(data.score("original", metric, source=source) for metric in METRICS),
            model=tuple(data.score("model", metric, source=source) for metric in METRICS),
        )
        rows.append(row)
    return rows


def _prior_rows(scored: list[RunData], split: str) -> list[Row]:
    """The frozen prior's own score: one row, or one for each different score if the runs used different stores.

    Of several each is called after a run, one that read it if there is any.
    """
    found: dict[tuple, RunData] = {}
    for run in sorted(scored, key=lambda run: not run.store):
        data = run.evals[split]
        original = tuple(data.score("original", metric, source="prior") for metric in METRICS)
        model = tuple(data.score("model", metric, source="prior") for metric in METRICS)
        if original[0] is not None:
            found.setdefault((original, model), run)
    return [
        Row(
            label="frozen prior alone" + (f" ({run.called or run.name})" if len(found) > 1 else ""),
            kind="prior",
            method="",
            seed="",
            labels="none",
            num=run.evals[split].num,
            data=_data_name(run, run.evals[split]),
            original=original,
            model=model,
        )
        for (original, model), run in found.items()
    ]


def _published_rows(scored: list[RunData], split: str) -> list[Row]:
    """Printed figures for the data sets and shares of labels of the runs, as far as there are any."""
    asked = dict.fromkeys(
        (str(run.data.get("dataset")), str(run.data.get("split_by")), run.fraction) for run in scored
    )
    found = [(one, [f for f in published(*one) if f.split == split]) for one in asked]
    found = [(one, figures) for one, figures in found if figures]
    return [
        Row(
            label=f"{figure.method}, published"
            + (f" ({dataset}, {percent_text(fraction)})" if len(found) > 1 else ""),
            kind="published",
            method="",
            seed="",
            labels=percent_text(fraction),
            num=None,
            data="",
            original=(None,) * len(METRICS),
            model=(None,) * len(METRICS),
            published=figure.oiou,
        )
        for (dataset, _, fraction), figures in found
        for figure in figures
    ]


def labels_text(run: RunData) -> str:
    """`5%: 849 images, 2104 refs`, with what is known."""
    images, refs = run.labelled
    counts = [f"{images:,} images"] if images is not None else []
    counts += [f"{refs:,} refs"] if refs is not None else []
    weak = f" + a {run.weak_label} for every other object" if run.weak_label else ""
    return percent_text(run.fraction) + (": " + ", ".join(counts) if counts else "") + weak


def text_table(tables: list[SplitTable]) -> str:
    """The headline for a terminal: plain text, one line for each row and split."""
    if not tables:
        return "no scores yet"
    names = [row.label for table in tables for row in table.rows if row.kind != "published"]
    width = max(len(name) for name in names)
    lines = []
    for table in tables:
        head = f"{table.split:<{width}}  {'original size':^23}   {table.resolution:^23}"
        lines += [
            head,
            f"{'':<{width}}  {'oIoU':>7}{'mIoU':>8}{'Pr@0.5':>8}   {'oIoU':>7}{'mIoU':>8}{'Pr@0.5':>8}",
        ]
        for row in table.rows:
            if row.kind != "published":
                cells = [
                    "".join(f"{number(v):>8}" for v in side[:NUM_SHORT])[1:]
                    for side in (row.original, row.model)
                ]
                about = f"   n={row.num}{f' of {row.data}' if table.of_several else ''}" + (
                    f"  labels {row.labels}  seed {row.seed}" if row.kind == "run" else ""
                )
                lines.append(f"{row.label:<{width}}  {cells[0]}   {cells[1]}{about}")
        figures = ", ".join(
            f"{row.label.replace(', published', '')} {number(row.published)}"
            for row in table.rows
            if row.kind == "published"
        )
        if figures:
            lines.append(f"published oIoU ({SOURCE}): {figures}")
        lines.append("")
    return "\n".join(lines).rstrip()


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"
