"""What the page opens with: methods with their seeds, and one figure of each."""

from dataclasses import dataclass

import numpy as np

from stage2_train.label_share import percent_text
from stage2_train.report.choice import choose_runs
from stage2_train.report.run_data import RunData
from stage2_train.report.stats import arm_names
from stage2_train.report.tables import Row, SplitTable


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seeds alone, or one run."""

    label: str
    """What the method is called, or the run's name."""
    runs: tuple[RunData, ...]
    """Its runs, in their order."""

    @property
    def seeds(self) -> str:
        """`seed 22` or `seeds 22, 23`; empty if it is not known."""
        seeds = [str(run.seed) for run in self.runs if run.seed is not None]
        return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}" if seeds else ""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One large figure."""

    label: str
    """Method, run, or `frozen prior alone`."""
    kind: str
    """`run` or `prior`."""
    value: float
    """oIoU at the original size, a mean of several runs."""
    spread: str
    """`± 0.004, n = 3` of several runs, or empty."""
    data: str
    """Sentences and data set, where they are others than those of the first row; else empty."""


def groups_of(runs: list[RunData]) -> list[Group]:
    """Runs by method and share of labels, in order of the first of each; those of one seed stay apart."""
    arms: dict[tuple[str, float | None], list[RunData]] = {}
    for run in runs:
        arms.setdefault((run.arm, run.fraction), []).append(run)
    names, groups = arm_names(runs), []
    several_shares = len({run.fraction for run in runs}) > 1
    for (arm, fraction), found in arms.items():
        if len(found) > 1 and len({str(run.seed) for run in found}) == len(found):
            share = f", {percent_text(fraction)} labels" if several_shares else ""
            groups.append(Group(label=names[arm] + share, runs=tuple(found)))
        else:
            groups += [Group(label=run.name, runs=(run,)) for run in found]
    return groups


def lead_tiles(groups: list[Group], table: SplitTable, most: int) -> tuple[list[Tile], list[str]]:
    """The figures of at most so many groups and of the priors, in the order of the table, and who has none.

    Each method has its turn, of one share of labels before the next.
    """
    scores = {row.label: row for row in table.rows if row.original[0] is not None}
    scored = [group for group in groups if any(run.name in scores for run in group.runs)]
    heads = {run.name for run in choose_runs([group.runs[0] for group in scored], most)}
    shown = [group for group in scored if group.runs[0].name in heads]
    places = {row.label: place for place, row in enumerate(table.rows)}
    first, tiles = table.rows[0], []
    for group in shown:
        rows = [scores[run.name] for run in group.runs if run.name in scores]
        if len({(row.num, row.data) for row in rows}) > 1:  # of other sentences: no mean
            tiles += [(places[row.label], _tile(row.label, [row], first)) for row in rows]
        else:
            label = group.label if len(rows) > 1 else rows[0].label
            tiles.append((places[rows[0].label], _tile(label, rows, first)))
    tiles += [
        (places[row.label], _tile(row.label, [row], first)) for row in table.rows if row.kind == "prior"
    ]
    left_out = [group.label for group in groups if group not in shown]
    return [tile for _, tile in sorted(tiles, key=lambda one: one[0])], left_out


def _tile(label: str, rows: list[Row], first: Row) -> Tile:
    """One figure of rows of the same sentences."""
    values = [value for row in rows if (value := row.original[0]) is not None]
    same = (rows[0].num, rows[0].data) == (first.num, first.data)
    return Tile(
        label=label,
        kind=rows[0].kind,
        value=float(np.mean(values)),
        spread=f"± {np.std(values, ddof=1):.3f}, n = {len(values)}" if len(values) > 1 else "",
        data="" if same else f"{rows[0].num or 0:,} sentences of {rows[0].data}",
    )
