"""What the cells of a grid read, and where each of them stands by the files of its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.cluster.products import is_written_here
from shared.datasets import load_dataset
from shared.errors import DataError
from shared.grid_folders import failure_of, is_finished, require_no_run
from shared.refer import ReferringDataset
from stage2_train.ablate_grid import Cell, Grid
from stage2_train.ablate_notes import notes_of
from stage2_train.config import TrainConfig
from stage2_train.evaluate import is_scored
from stage2_train.inputs import open_split
from stage2_train.run_files import has_ended, with_own_store
from stage2_train.run_identity import (
    difference_of_run,
    difference_of_split,
    run_record,
    split_record,
    with_recorded_pins,
)
from stage2_train.same_images import require_same_images
from stage2_train.segmentor import require_fitting_weights
from stage2_train.segmentor_config import SegmentorConfig
from stage2_train.split import scorable
from stage2_train.store_choice import choose_store, open_priors, require_fitting

DONE, FAILED, PART, TODO, BUSY_STATE = "done", "failed", "interrupted", "to do", "busy"
"""States of a cell."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a cell stands."""

    state: str
    """One of the states above."""
    reason: str = ""
    """Why it is not done; "" where there is nothing to say."""
    differs: str = ""
    """What tells the run in its folder from this cell, in words, where that is another one's; else ""."""


Draw = tuple[float, int, str]
"""Share of labels, seed of the draw, kind of weak label."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What the cells of a grid read."""

    stores: dict[str, dict[str, str]]
    """Path and fingerprint of the stores that they read, by what cells call them (`store`; "": the one that fits)."""
    splits: dict[Draw, dict[str, Any]]
    """What their `split.json` holds."""
    masks: dict[str, str]
    """Hash of the masks of each split that is scored."""
    data_fingerprint: str
    """Of the annotations of their data set."""

    def store_of(self, cell: Cell) -> dict[str, str] | None:
        """The store that a cell is told of; None for one that reads none and calls it like none of several."""
        only = next(iter(self.stores.values())) if len(self.stores) == 1 else None
        return self.stores.get(cell.config.store, only)


def draw_of(config: TrainConfig) -> Draw:
    """What decides which labels a cell is given; a file that names the images is the same for all."""
    return config.fraction, config.split_seed, config.weak_label


def open_grid(grid: Grid, out: Path, *, coming: Path | None = None, quiet: bool = False) -> Opened:
    """Look at all that the cells will read, so that errors show before the first of them is run.

    Args:
        grid: The grid.
        out: Its folder; a grid that has begun keeps to its stores.
        coming: A store that cells name and that is being written by jobs that end before they begin.
        quiet: No progress bar over images that have to be compared with those of a store.

    Raises:
        DataError: No such data, a split that cannot be scored, a cell without labelled or unlabelled images, no
            complete store for the data, several and none named, one that was made for images that were replaced since,
            two cells that are the same run over one store, a network that its weights do not fit, or the folder of a
            single run.
    """
    require_no_run(out)
    dataset = load_dataset(grid.cells[0].config.data)
    try:
        masks = {split: dataset.masks_hash(scorable(dataset, split)) for split in grid.splits}
    except DataError as error:
        raise DataError(f"{grid.path}: splits: {error}") from error
    seen: set[tuple[Any, ...]] = set()
    networks: set[SegmentorConfig] = set()
    splits: dict[Draw, dict[str, Any]] = {}
    for cell in grid.cells:
        own = cell.config
        if own.segmentor not in networks and not has_ended(out / cell.name):
            networks.add(own.segmentor)
            try:
                require_fitting_weights(own.segmentor)
            except DataError as error:
                raise DataError(f"{grid.path}: {cell.name}: {error}") from error
        asked = (draw_of(own), own.uses_unlabelled, own.eval_every > 0, own.val_split)
        if asked not in seen:
            seen.add(asked)
            try:
                splits[draw_of(own)] = split_record(own, open_split(own, dataset), dataset)
            except DataError as error:
                raise DataError(f"{grid.path}: {cell.name}: {error}") from error
    readers: dict[str, list[Cell]] = {}
    for cell in grid.cells:
        if cell.config.uses_store:
            readers.setdefault(cell.config.store, []).append(cell)
    stores = {name: _store_of(cells, out, dataset, coming, quiet) for name, cells in readers.items()}
    _require_other_runs(grid, stores)
    return Opened(stores=stores, splits=splits, masks=masks, data_fingerprint=dataset.fingerprint())


def _store_of(
    readers: Sequence[Cell], out: Path, dataset: ReferringDataset, coming: Path | None, quiet: bool
) -> dict[str, str]:
    """Path and fingerprint of the store of cells that call it the same."""
    config = readers[0].config
    if coming is not None and config.store and Path(config.store) == coming:
        require_fitting(coming, config, dataset, dataset.samples("train"))
        return {"path": config.store, "fingerprint": ""}
    begun = (with_own_store(out / cell.name, cell.config) for cell in readers)
    config = next((own for own in begun if own.store), config)
    path, samples = choose_store(config, dataset, quiet=quiet), dataset.samples("train")
    store = open_priors(path, config, dataset, samples).store
    if not all(has_ended(out / cell.name) for cell in readers):
        require_same_images(store, config, dataset, samples, quiet=quiet)
    return {"path": str(path), "fingerprint": store.fingerprint}


def _require_other_runs(grid: Grid, stores: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse cells that differ in what they call their store alone, where that is one store."""
    runs: dict[TrainConfig, str] = {}
    for cell in (cell for cell in grid.cells if cell.config.uses_store):
        store = stores[cell.config.store]
        known_by = replace(cell.config, store=store["fingerprint"] or store["path"])
        if (same := runs.setdefault(known_by, cell.name)) != cell.name:
            raise DataError(
                f"{grid.path}: cells {same} and {cell.name} are the same run under two names: both read {store['path']}"
            )


def state_of(cell: Cell, grid: Grid, out: Path, opened: Opened) -> State:
    """Where a cell stands, by the files of its folder."""
    run = out / cell.name
    if not (run / "config.json").is_file():
        return _failure(run) or State(state=TODO)
    try:
        differs = _difference(cell, run, opened)
    except DataError as error:
        return State(state=FAILED, reason=str(error))
    if differs:
        return State(state=FAILED, reason=f"{run}: belongs to another run ({differs})", differs=differs)
    if is_finished(run) and all(is_scored(run, split, opened.masks[split]) for split in grid.splits):
        return State(state=DONE)
    if is_written_here(run):
        return State(state=BUSY_STATE, reason="another process has it")
    return _failure(run) or State(state=PART)


def _difference(cell: Cell, run: Path, opened: Opened) -> str:
    """What tells the run that a cell's folder holds from the cell; "" if it is the cell's."""
    store = opened.store_of(cell) if cell.config.uses_store else None
    config = with_recorded_pins(run, cell.config)
    record = run_record(config, cell.recipe, cell.changes, store, opened.data_fingerprint, 1)
    if differing := difference_of_run(run, record):
        return differing
    return (
        difference_of_split(run, opened.splits[draw_of(cell.config)])
        if (run / "split.json").is_file()
        else ""
    )


def require_own_cells(out: Path, differences: Mapping[str, str]) -> None:
    """Refuse a grid's folder whose runs are others: none of them could go on, and the table would lose them.

    Args:
        out: The folder.
        differences: `State.differs` of all cells, by name.

    Raises:
        DataError: It holds runs of other settings, data or labels; their number and what differs in the first.
    """
    others = {name: differs for name, differs in differences.items() if differs}
    if others:
        name, differs = next(iter(others.items()))
        raise DataError(
            f"{out}: {len(others)} of {len(differences)} runs of the grid are there with other settings or data, first "
            f"{name} ({differs}); name another folder by --out, or give the grid file, --set and data of before"
        )


def _failure(run: Path) -> State | None:
    reason = failure_of(run)
    return None if reason is None else State(state=FAILED, reason=reason)


def describe_stores(grid: Grid, opened: Opened) -> list[dict[str, Any]]:
    """`path`, `fingerprint` and `arms` (who reads it, and what they are called) of the stores, in the grid's order."""
    found: dict[str, dict[str, Any]] = {}
    for cell in grid.cells:
        if cell.config.uses_store:
            store = opened.stores[cell.config.store]
            own = found.setdefault(store["fingerprint"] or store["path"], {**store, "arms": {}})
            own["arms"][cell.arm] = cell.shown
    return list(found.values())


def describe_grid(grid: Grid, out: Path, *, coming: Path | None = None) -> dict[str, Any]:
    """What `--dry-run` prints: every cell and its state.

    Nothing is started, and nothing is written but the memory of image hashes.

    Args:
        grid: The grid.
        out: Its folder.
        coming: As for `open_grid`.
    """
    opened = open_grid(grid, out, coming=coming)
    states = {cell.name: state_of(cell, grid, out, opened) for cell in grid.cells}
    return {
        "grid": str(grid.path),
        "out": str(out),
        "stores": describe_stores(grid, opened),
        "reference": grid.reference,
        "notes": notes_of(grid),
        "splits": list(grid.splits),
        "cells": {
            cell.name: {
                "state": states[cell.name].state,
                "reason": states[cell.name].reason,
                "differs": states[cell.name].differs,
                "recipe": cell.recipe,
                "changes": list(cell.changes),
            }
            for cell in grid.cells
        },
    }


def text_of_cells(plan: Mapping[str, Any]) -> str:
    """What `describe_grid` found: a line per cell, its state, name and recipe with changes."""
    many = len(plan["stores"]) > 1
    stores = [
        f"store{' of ' + ', '.join(one['arms'].values()) if many else ''}: {one['path']}"
        for one in plan["stores"]
    ]
    lines = [f"out: {plan['out']}", *(stores or ["store: none needed"]), f"reference: {plan['reference']}"]
    for name, cell in plan["cells"].items():
        changes = " ".join(f"--set {change}" for change in cell["changes"])
        lines.append(f"{cell['state']:<12}{name}: {cell['recipe']} {changes}")
        if cell["reason"]:
            lines.append(f"{'':<12}{cell['reason']}")
    return "\n".join([*lines, *plan["notes"]])
