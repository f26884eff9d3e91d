"""Put the page together: data from the other modules into `assets/page.html.j2`, one file out.

The file stands alone: style, script, charts and pictures are inside, and its content-security policy forbids every
request. Text from data is escaped by the template engine; the only script
that may run is the one whose hash the policy names.
"""

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from shared.errors import DataError
from shared.metrics import LENGTH_BUCKETS
from shared.runlog import say
from shared.store.publish import publish_file
from stage2_train.label_share import percent_text
from stage2_train.report import provenance, stats
from stage2_train.report.charts import Line, LineChart, line_chart
from stage2_train.report.choice import TAGS, choose_runs, scored_alike
from stage2_train.report.collect import collect_runs
from stage2_train.report.curves import MAX_LINES, PRIOR_STYLE, curve_charts
from stage2_train.report.gallery import BUDGET_BYTES, MAX_RUNS, Card, build_gallery, taught_cards
from stage2_train.report.grids import expand
from stage2_train.report.lead import groups_of, lead_tiles
from stage2_train.report.notices import Notice, missing_parts, notices, scored_stores, undone
from stage2_train.report.prior_health import PriorHealth, prior_health
from stage2_train.report.reference import SOURCE
from stage2_train.report.run_data import RunData
from stage2_train.report.sources import Sources
from stage2_train.report.tables import number, split_tables, text_table

ALONE, SEVERAL = "report.html", "comparison.html"
"""Names of the report of one folder and of several, in the first: the one of a run stays when it is compared."""


def write_page(paths: list[Path], out: Path | None) -> tuple[Path, str]:
    """Collect, draw, write; see `stage2_train.report.write_report`."""
    folders, left_out = expand(paths)
    runs = collect_runs(folders)
    target = out if out is not None else paths[0] / (SEVERAL if len(paths) > 1 else ALONE)
    runs.sort(key=lambda run: run.method != "supervised")  # baselines first: differences are taken from them
    healths = {run.name: health for run in runs if (health := prior_health(run)) is not None}
    tables = split_tables(runs)
    warnings = notices(runs, healths, left_out)
    sources = Sources(runs)
    html = render(runs, healths, warnings, sources)
    _publish(target, html)
    for line in undone(runs):
        say(f"note: {line}")
    for lost in missing_parts(runs) + sources.missing:
        say("note: left out of the report: " + " ".join(lost.split()))
    alarms = [notice for notice in warnings if notice.level == "alarm"]
    lines = [
        text_table(tables),
        *(f"left out, not finished and scored: {path}" for path in left_out),
        *(f"WARNING: {notice.title}. {notice.text}" for notice in alarms),
    ]
    return target, "\n".join(lines)


def render(
    runs: list[RunData], healths: dict[str, PriorHealth], warnings: list[Notice], sources: Sources
) -> str:
    """The whole page as text.

    Args:
        runs: The runs, baselines first.
        healths: Store health by run name.
        warnings: What a reader must know before believing the figures.
        sources: Images, masks and priors for the gallery.
    """
    shown, drawn = choose_runs(runs, MAX_RUNS), choose_runs(runs, MAX_LINES)
    alike = scored_alike(runs)
    compared = choose_runs(alike, MAX_RUNS)
    cards, left_out = build_gallery(compared, sources)
    budget = BUDGET_BYTES - sum(card.num_bytes for card in cards)
    taught: list[tuple[str, list[Card]]] = []
    for index, run in enumerate(shown):
        found = taught_cards(run, sources, key=f"p{index}", budget_bytes=budget)
        budget -= sum(card.num_bytes for card in found)
        taught += [(run.name, found)] if found else []
    if sources.missing:
        text = "; ".join(sources.missing) + "."
        warnings = [*warnings, Notice(level="warn", title="Pictures are missing", text=text)]
    main_charts, other_charts = curve_charts(drawn)
    script, style = _asset("page.js"), _look() + _asset("style.css")
    tables, groups = split_tables(runs), groups_of(runs)
    tiles, untiled = lead_tiles(groups, tables[0], MAX_RUNS) if tables else ([], [])
    context = {
        "runs": runs,
        "groups": groups,
        "tiles": tiles,
        "untiled": untiled,
        "style": style,
        "script": script,
        "style_hash": _sha256(style),
        "script_hash": _sha256(script),
        "notices": warnings,
        "healths": _unique_healths(runs, healths),
        "tables": tables,
        "scored_stores": scored_stores(runs),
        "source": SOURCE,
        "differences": _differences(runs),
        "agreements": _agreements(runs),
        "spreads": stats.spreads(runs),
        "charts": main_charts,
        "other_charts": other_charts,
        "drawn": drawn,
        "length_charts": _length_charts(drawn),
        "cards": cards,
        "left_out": left_out,
        "tags": TAGS,
        "shown_runs": shown,
        "alike": alike,
        "compared": compared,
        "gallery_splits": list(dict.fromkeys(card.split for card in cards)),
        "taught": taught,
        "gallery_missing": list(sources.missing),
        "facts": provenance.fact_rows(runs),
        "versions": provenance.version_rows(runs),
        "settings": provenance.differing_settings(runs) if len(runs) > 1 else [],
        "commands": provenance.commands(runs),
        "configs": [(run.name, provenance.pretty_config(run)) for run in runs],
    }
    return _environment().get_template("page.html.j2").render(context)


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["percent"] = percent_text
    environment.filters["signed"] = lambda value: f"{value:+.3f}".replace("-", "−")
    return environment


def _asset(name: str) -> str:
    return resources.files("stage2_train.report").joinpath("assets", name).read_text("utf-8")


def _look() -> str:
    """The rules that every page of the project begins with."""
    return resources.files("shared").joinpath("look.css").read_text("utf-8")


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _publish(target: Path, html: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        publish_file(
            target, html.encode(errors="backslashreplace")
        )  # a damaged record may hold half a character
    except OSError as error:
        raise DataError(f"{target}: the report could not be written ({error.strerror})") from error


def _differences(runs: list[RunData]) -> list[dict[str, Any]]:
    """Score of each run minus that of the first with its share of labels, labelled images and seed.

    On each split of the same data that both were scored on; the first ones themselves have no row.
    """
    rows = []
    firsts: dict[tuple[float | None, str, str], RunData] = {}
    for other in runs:
        first = firsts.setdefault((other.fraction, str(other.split.get("hash")), str(other.seed)), other)
        for split in first.evals if first is not other else ():
            if split in other.evals and first.data_of(split) == other.data_of(split):
                interval = stats.paired_difference(first.evals[split], other.evals[split])
                if interval is not None:
                    rows.append(
                        {"first": first.name, "other": other.name, "split": split, "interval": interval}
                    )
    return rows


def _agreements(runs: list[RunData]) -> list[dict[str, Any]]:
    found = ((run.name, split, stats.agreement(data)) for run in runs for split, data in run.evals.items())
    return [
        {"run": name, "split": split, "agreement": item} for name, split, item in found if item is not None
    ]


def _length_charts(runs: list[RunData]) -> list[LineChart]:
    """Both IoU figures by number of words, on the first split that has sentences."""
    split = next((split for run in runs[:1] for split, data in run.evals.items() if data.sample_ids), None)
    if split is None:
        return []
    scored = [run.evals[split] for run in runs if split in run.evals and run.evals[split].sample_ids]
    ranges = stats.length_ranges(scored)
    if len(ranges) < 2:
        return []
    bins = [(run, stats.by_length(run.evals[split], ranges) if split in run.evals else []) for run in runs]
    counts = {item.label: item.num for _, items in bins for item in items}
    labels = [item.label for item in max((items for _, items in bins), key=len)]
    categories = [f"{label} (n={counts[label]:,})" if len(labels) < 4 else label for label in labels]
    note = "Sentences: " + ", ".join(f"{label} words {counts[label]:,}" for label in labels) + "."
    if len(ranges) < len(LENGTH_BUCKETS):
        note += f" Lengths of fewer than {stats.FEWEST} sentences are joined with their neighbours."

    def line(name: str, values: dict[str, float | None], style: int) -> Line:
        points = (
            (labels.index(key), value) for key, value in values.items() if value is not None and key in labels
        )
        return Line(label=name, points=tuple(points), style=style)

    overall = [line(run.name, {i.label: i.oiou for i in items}, n) for n, (run, items) in enumerate(bins)]
    mean = [line(run.name, {i.label: i.miou for i in items}, n) for n, (run, items) in enumerate(bins)]
    with_prior = next((items for _, items in bins if any(i.prior_miou is not None for i in items)), [])
    overall.append(line("frozen prior alone", {i.label: i.prior_oiou for i in with_prior}, PRIOR_STYLE))
    mean.append(line("frozen prior alone", {i.label: i.prior_miou for i in with_prior}, PRIOR_STYLE))
    charts = (
        line_chart(overall, title=f"oIoU by sentence length, {split}", x_label="words in the sentence",
                   y_label="oIoU (share of 1)", note=note, unit_interval=True, categories=categories),
        line_chart(mean, title=f"Mean IoU by sentence length, {split}", x_label="words in the sentence",
                   y_label="mean IoU (share of 1)", note=note, unit_interval=True, categories=categories),
    )  # fmt: skip
    return [chart for chart in charts if chart is not None]


def _unique_healths(runs: list[RunData], healths: dict[str, PriorHealth]) -> list[tuple[str, PriorHealth]]:
    """One entry per store, with the names of the runs that used it."""
    users: dict[PriorHealth, list[str]] = {}
    for run in runs:
        if run.name in healths:
            users.setdefault(healths[run.name], []).append(run.name)
    return [(", ".join(names), health) for health, names in users.items()]
