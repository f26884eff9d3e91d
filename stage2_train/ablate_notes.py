"""What whoever reads a grid's table has to know of its arms: settings without effect, other budgets, more labels.

A function of the grid alone, so that a dry run and a submission say it before anything is trained.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.config import changed_field, idle_overrides
from stage2_train.ablate_grid import OWN_AXES, Cell, Grid
from stage2_train.config import TrainConfig
from stage2_train.idle_fields import idle_fields, untrained_parts

BUDGET: Mapping[str, Callable[[TrainConfig], Any]] = {
    "steps": lambda config: config.steps,
    "batch_labelled": lambda config: config.batch_labelled,
    "batch_unlabelled": lambda config: config.batch_unlabelled if config.uses_unlabelled else None,
    "image size": lambda config: "{} x {}".format(*config.size_hw),
    "misplaced_priors": lambda config: config.misplaced_priors if config.uses_prior else None,
}
"""What methods that are compared should share, beside the data; None for a run that has no such thing."""


def notes_of(grid: Grid) -> list[str]:
    """A line for each point, in the order of the grid's arms."""
    first: dict[str, Cell] = {}
    for cell in grid.cells:
        first.setdefault(cell.arm, cell)
    arms = list(first.values())
    return [*_extra_labels(arms), *_budgets(arms), *_idle(arms)]


def few(names: Sequence[str], most: int) -> str:
    """Names in a line: all of them, or the first and how many more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _extra_labels(arms: Sequence[Cell]) -> list[str]:
    """Who is given more than the masks that all are given."""
    found: dict[str, list[str]] = {}
    for cell in arms:
        if cell.config.weak_label:
            found.setdefault(cell.config.weak_label, []).append(cell.shown)
    return [
        f"note: {few(names, 5)}: given the true {kind} of every unlabelled object besides"
        for kind, names in found.items()
    ]


def _budgets(arms: Sequence[Cell]) -> list[str]:
    """In what else than the method arms differ that stand under the same override."""
    lines = []
    for override in dict.fromkeys(cell.override for cell in arms):
        for name, of in BUDGET.items():
            values: dict[Any, list[str]] = {}
            for cell in arms:
                if cell.override == override and (value := of(cell.config)) is not None:
                    values.setdefault(value, []).append(cell.shown)
            if len(values) > 1:
                each = "; ".join(f"{value} ({few(names, 3)})" for value, names in values.items())
                lines.append(f"WARNING: the arms differ in {name}: {each}")
    return lines


def _idle(arms: Sequence[Cell]) -> list[str]:
    """Changes without effect: those of a method in it, those that several share if they have none in any of them."""
    lines: list[str] = []
    shared: dict[str, list[tuple[Cell, str]]] = {}
    for cell in arms:
        idle = list(idle_fields(cell.config))
        said = [*idle_overrides(idle, cell.own), *untrained_parts(cell.config)]
        lines += [f"note: {cell.shown}: {line}" for line in said]
        for change in cell.changes:
            if change not in cell.own and changed_field(change) not in OWN_AXES:
                shared.setdefault(change, []).append((cell, "".join(idle_overrides(idle, [change]))))
    for found in shared.values():
        if all(line for _, line in found):
            lines.append(f"note: {few([cell.shown for cell, _ in found], 3)}: {found[0][1]}")
    return list(dict.fromkeys(lines))
