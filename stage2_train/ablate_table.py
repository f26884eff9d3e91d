"""What a grid found, as one table: mean and spread over seeds, and differences from a reference with seeds paired.

Every figure is a score of finished cells at a named size of image; nothing is filled in for cells that are missing.
"""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shared.json_files import read_json
from shared.runlog import METRICS_FILE
from stage2_train.ablate_grid import Cell, Grid
from stage2_train.ablate_notes import few
from stage2_train.label_share import label_share, percent_text
from stage2_train.report.lenient_json import read_jsonl
from stage2_train.run_code import codes_of

PRIOR = "frozen prior alone"
"""Name of the prior's row."""
FRAMES = ("original", "model")
METRICS = ("oiou", "miou", "pr@0.5", "pr@0.7", "pr@0.9")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one method at one share of labels on one split."""

    arm: str
    """Method, and override where the grid has any."""
    label: str
    """What tables and charts call it."""
    weak_label: str
    """What it was given for the unlabelled objects beside masks: `box`, `point` or ""."""
    fraction: float
    """Share of labelled images, as it was asked for."""
    label_share: float
    """Share of the train images that were read with masks."""
    num_labelled_images: int | None
    """How many those are; None if the cells do not say."""
    split: str
    """Test split."""
    frame: str
    """Size of image the metric was measured at: `original` or `model`."""
    metric: str
    """For example `oiou`."""
    seeds: tuple[int, ...]
    """Seeds of the finished cells."""
    values: tuple[float, ...]
    """The metric, one per seed."""
    mean: float
    """Their mean."""
    sd: float | None
    """Their sample standard deviation (n - 1); None for a single seed."""
    paired_seeds: tuple[int, ...]
    """Seeds that the reference has finished, too; empty for the reference itself."""
    difference: float | None
    """Mean over those seeds of this arm's value minus the reference's."""
    difference_sd: float | None
    """Sample standard deviation of that difference; None for a single pair."""


def collect_scores(grid: Grid, out: Path, done: Sequence[Cell]) -> dict[tuple[str, str], dict[str, Any]]:
    """The content of `eval/<split>.json` of every finished cell, by (cell name, split)."""
    return {
        (cell.name, split): read_json(out / cell.name / "eval" / f"{split}.json")
        for cell in done
        for split in grid.splits
    }


def collect_labels(out: Path, done: Sequence[Cell]) -> dict[str, tuple[float, int]]:
    """By name of finished cells, the share of train images that were read with masks, and how many those are."""
    found = {}
    for cell in done:
        path = out / cell.name / "split.json"
        split = read_json(path) if path.is_file() else {}
        num = len(split.get("image_ids") or [])
        share = label_share(cell.fraction, num, split.get("num_train_images"))
        if split and share is not None:
            found[cell.name] = share, num
    return found


def collect_codes(out: Path, done: Sequence[Cell]) -> dict[str, list[str]]:
    """Names of the finished cells by the state of the code that trained them; those that do not say are left out.

    A cell that one state began and another continued stands under both.
    """
    found: dict[str, list[str]] = {}
    for cell in done:
        run = out / cell.name
        for code in codes_of(read_json(run / "config.json"), read_jsonl(run / METRICS_FILE, [])):
            found.setdefault(code, []).append(cell.name)
    return found


def build_rows(
    grid: Grid,
    done: Sequence[Cell],
    scores: Mapping[tuple[str, str], Mapping[str, Any]],
    labels: Mapping[str, tuple[float, int]],
) -> list[Row]:
    """All rows: arms in the grid's order, then fractions, splits, frames, metrics.

    Args:
        grid: The grid.
        done: Its finished cells.
        scores: `collect_scores`.
        labels: `collect_labels`; a cell that is not in it counts as it was asked for.
    """
    groups: dict[tuple[str, str, float], dict[int, Cell]] = {}
    for cell in done:
        groups.setdefault((cell.method, cell.override, cell.fraction), {})[cell.seed] = cell
    rows = []
    for (method, override, fraction), cells in groups.items():
        partners = {} if method == grid.reference else groups.get((grid.reference, override, fraction), {})
        for split in grid.splits:
            for frame in FRAMES:
                for metric in METRICS:
                    own, other = (
                        {seed: scores[cell.name, split][frame][metric] for seed, cell in which.items()}
                        for which in (cells, partners)
                    )
                    first = next(iter(cells.values()))
                    share, num = labels.get(first.name, (fraction, None))
                    row = _row(first, fraction, split, frame, metric, own, other)
                    rows.append(replace(row, label_share=share, num_labelled_images=num))
    return rows


def _row(
    cell: Cell,
    fraction: float,
    split: str,
    frame: str,
    metric: str,
    own: Mapping[int, float],
    other: Mapping[int, float],
) -> Row:
    paired = tuple(seed for seed in own if seed in other)
    differences = [own[seed] - other[seed] for seed in paired]
    return Row(
        arm=cell.arm,
        label=cell.shown,
        weak_label=cell.config.weak_label,
        fraction=fraction,
        label_share=fraction,
        num_labelled_images=None,
        split=split,
        frame=frame,
        metric=metric,
        seeds=tuple(own),
        values=tuple(own.values()),
        mean=statistics.fmean(own.values()),
        sd=_sd(list(own.values())),
        paired_seeds=paired,
        difference=statistics.fmean(differences) if differences else None,
        difference_sd=_sd(differences),
    )


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def prior_scores(
    grid: Grid,
    stores: Sequence[Mapping[str, Any]],
    scores: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Each frozen prior's own score on each split, by the name of its row.

    From the first finished cell that has it; with several stores, of those that read the store.

    Args:
        grid: The grid.
        stores: `ablate_state.describe_stores`.
        scores: `collect_scores`.
    """
    arms = {cell.name: cell.arm for cell in grid.cells}
    several = len(stores) > 1
    names = {arm: f"{PRIOR} ({readers(store)})" for store in stores for arm in store["arms"]}
    found: dict[str, dict[str, Any]] = {name: {} for name in names.values()} if several else {PRIOR: {}}
    for (cell, split), result in scores.items():
        name = names.get(arms[cell]) if several else PRIOR
        if name is not None and result.get("prior"):
            found[name].setdefault(split, result["prior"])
    return {name: of_splits for name, of_splits in found.items() if of_splits}


def readers(store: Mapping[str, Any], most: int = 2) -> str:
    """Who reads a store, as tables call them; of more than `most` the first."""
    return few(list(store["arms"].values()), most)


def model_sizes(scores: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """What `model` stands for in a frame: height x width of the networks' inputs, pixels."""
    return sorted({"x".join(map(str, result["resolution"])) for result in scores.values()})


def rows_as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain dictionaries."""
    return [asdict(row) for row in rows]


def rows_as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each of `rows_as_json`; lists are joined by blanks, what is unknown is empty."""
    text = io.StringIO()
    names = list(Row.__dataclass_fields__)
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: " ".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in row.items()}
        )
    return text.getvalue()


def as_text(answer: Mapping[str, Any]) -> str:
    """The table for people: oIoU and mIoU at the original size, then what is not finished and why.

    Args:
        answer: What `ablate.run_grid` returns.
    """
    width = max([len(PRIOR), *map(len, answer["prior"]), *(len(row["label"]) for row in answer["rows"])])
    shares = max([6, *(len(labels_text(row)) for row in answer["rows"])])
    head = f"{'split':<7}{'labels':>{shares}}  {'method':<{width}}{'seeds':>6}"
    lines = [head + "".join(f"{name:>9}{'sd':>8}{'diff':>9}{'sd':>8}" for name in ("oIoU", "mIoU"))]
    shown = [row for row in answer["rows"] if row["frame"] == "original"]
    for name, of_splits in answer["prior"].items():
        for split, prior in of_splits.items():
            cells = "".join(f"{prior['original'][metric]:>9.4f}{'':>25}" for metric in ("oiou", "miou"))
            lines.append(f"{split:<7}{'':>{shares}}  {name:<{width}}{'':>6}{cells}".rstrip())
    for row in (row for row in shown if row["metric"] == "oiou"):
        same = ("arm", "fraction", "split")
        partner = next(
            other for other in shown if other["metric"] == "miou" and all(other[k] == row[k] for k in same)
        )
        figures = "".join(
            f"{one['mean']:>9.4f}{_optional(one['sd']):>8}{_optional(one['difference'], '+'):>9}"
            f"{_optional(one['difference_sd']):>8}"
            for one in (row, partner)
        )
        about = (
            f"{row['split']:<7}{labels_text(row):>{shares}}  {row['label']:<{width}}{len(row['seeds']):>6}"
        )
        lines.append(f"{about}{figures}".rstrip())
    several = len(answer["stores"]) > 1
    counts = ", ".join(f"{number} {state}" for state, number in answer["counts"].items())
    lines += ["", f"cells: {counts}; diff is against {_reference(answer)!r}, seeds paired; original size"]
    lines += [f"prior store of {readers(one, 12)}: {one['path']}" for one in answer["stores"] if several]
    lines += remarks(answer)
    lines += [f"{cell['cell']}: {cell['state']}: {cell['reason']}" for cell in answer["unfinished"]]
    return "\n".join(lines)


def _reference(answer: Mapping[str, Any]) -> str:
    """What the reference is called."""
    name = answer["reference"]
    own = (row for row in answer["rows"] if row["arm"].partition("+")[0] == name)
    return next((row["label"].removesuffix(row["arm"].removeprefix(name)) for row in own), name)


def labels_text(row: Mapping[str, Any]) -> str:
    """`10% (20)`: the share of train images that were read with masks, and how many those are."""
    num = row["num_labelled_images"]
    return percent_text(row["label_share"]) + ("" if num is None else f" ({num:,})")


def remarks(answer: Mapping[str, Any]) -> list[str]:
    """What the spread does not cover, what else tells arms apart, and whether all cells are of one code."""
    draws = answer["split_seeds"]
    if answer["image_ids_file"]:
        labelled = "all cells learn from the labelled images of one file"
    elif len(draws) == 1:
        labelled = f"all cells learn from one draw of labelled images (split_seed {draws[0]})"
    else:
        labelled = (
            f"each seed has a draw of labelled images of its own (split_seed {', '.join(map(str, draws))})"
        )
    lines = [labelled + ("" if len(draws) > 1 else ": sd is that of the training alone")]
    lines += [*answer["notes"], *_unpaired(answer)]
    codes = answer["codes"]
    if len(codes) > 1:
        most = max(codes, key=lambda code: len(codes[code]))
        others = dict.fromkeys(name for code, names in codes.items() if code != most for name in names)
        times = Counter(name for names in codes.values() for name in names)
        mixed = [name for name, number in times.items() if number > 1]
        lines.append(
            f"WARNING: the cells were trained by {len(codes)} states of the code, "
            + ", ".join(f"{code} ({len(names)})" for code, names in codes.items())
            + (f"; begun by one and continued by another: {few(mixed, 5)}" if mixed else "")
            + "; delete the folders of those to be trained again; not by "
            + f"{most}{' alone' if mixed else ''}: {few(list(others), 5)}"
        )
    return lines


def _unpaired(answer: Mapping[str, Any]) -> list[str]:
    """Differences over fewer seeds than the mean beside them."""
    rows = (row for row in answer["rows"] if (row["frame"], row["metric"]) == ("original", "oiou"))
    lines = {
        f"diff of {row['label']} at {labels_text(row)} is over {len(row['paired_seeds'])} of its {len(row['seeds'])} "
        f"seeds ({', '.join(map(str, row['paired_seeds']))}), which alone the reference has finished, too": None
        for row in rows
        if row["difference"] is not None and len(row["paired_seeds"]) < len(row["seeds"])
    }
    return list(lines)


def _optional(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.4f}"
