"""Runs a grid of trainings over one data set and ends with one table.

    OUT/<method>/fraction-<f>/seed-<s>/           a run folder as `train` leaves it, with its scores, and `cell.log`
    OUT/grid.json                                 names of all runs and what methods are called, written first
    OUT/table.json, .csv, .txt, .tex, chart.svg   written at the end of every call, over all cells of the grid;
                                                  one that is told to stop has no time for them

Every cell is a process (`stage2_train.ablate_cell`): a crash is that cell's alone, and whatever ends this process ends
them after a checkpoint. A second call skips what is done, goes on with what was interrupted and tries again what had
failed. Several calls may share a grid, by `only` or simply at once: a cell has a lock.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shared.cluster.tasks import why_ended
from shared.errors import DataError
from shared.grid_folders import FAILED_FILE, GRID_FILE
from shared.json_files import write_json
from shared.locks import locked
from shared.runlog import ProgressBar
from shared.stopping import STOPPED, stop_flag
from shared.store.publish import disk_errors, publish_file
from stage2_train.ablate_cell import BUSY
from stage2_train.ablate_chart import draw
from stage2_train.ablate_grid import Cell, Grid
from stage2_train.ablate_latex import as_latex
from stage2_train.ablate_notes import notes_of
from stage2_train.ablate_state import (
    BUSY_STATE,
    DONE,
    FAILED,
    PART,
    TODO,
    Opened,
    State,
    describe_stores,
    open_grid,
    require_own_cells,
    state_of,
)
from stage2_train.ablate_table import (
    as_text,
    build_rows,
    collect_codes,
    collect_labels,
    collect_scores,
    model_sizes,
    prior_scores,
    rows_as_csv,
    rows_as_json,
)

LOG_FILE = "cell.log"


def parse_share(text: str) -> tuple[int, int]:
    """`i/n` as (i, n) with 0 <= i < n.

    Raises:
        DataError: Anything else.
    """
    first, slash, second = text.partition("/")
    if slash and first.isdecimal() and second.isdecimal() and int(first) < int(second):
        return int(first), int(second)
    raise DataError(f"only is {text!r}, not i/n with i from 0 to n - 1")


def command_of(cell: Cell, out: Path, opened: Opened) -> list[str]:
    """The process of a cell; it is told its store, and the masks that it is scored on."""
    store = opened.store_of(cell)
    changes = [*cell.changes, *([f"store={store['path']}"] if store else [])]
    spec = {
        "run": str(out / cell.name),
        "recipe": cell.recipe,
        "changes": changes,
        "splits": opened.masks,
    }
    return [sys.executable, "-m", "stage2_train.ablate_cell", json.dumps(spec)]


def run_grid(
    grid: Grid,
    out: Path,
    *,
    jobs: int = 1,
    only: tuple[int, int] = (0, 1),
    quiet: bool = False,
    command: Callable[[Cell, Path, Opened], list[str]] = command_of,
) -> dict[str, Any]:
    """Run what is left of a grid, or a share of it, and write the table of all of it.

    Args:
        grid: The grid.
        out: Its folder.
        jobs: Cells that run at once.
        only: (i, n): this call takes the cells whose number leaves i when divided by n.
        quiet: No progress line.
        command: The process of a cell.

    Returns:
        `rows`, `prior`, `notes` (`ablate_notes.notes_of`), `counts` by state, `unfinished` cells with their reasons,
        `own_unfinished` (how many of this call's share), `reference`, `data`, `stores`, `model_sizes`, `out`.

    Raises:
        DataError: No store, bad arguments, or a folder whose runs are others (`require_own_cells`).
        SystemExit: Status `STOPPED` after SIGTERM or SIGUSR1; cells have written checkpoints, the table is as it was.
    """
    if jobs < 1:
        raise DataError(f"jobs is {jobs}, below 1")
    opened = open_grid(grid, out, quiet=quiet)
    states = {cell.name: state_of(cell, grid, out, opened) for cell in grid.cells}
    require_own_cells(out, {name: state.differs for name, state in states.items()})
    own = [cell for number, cell in enumerate(grid.cells) if number % only[1] == only[0]]
    finished = {cell.name for cell in own if states[cell.name].state == DONE}
    names, labels = [cell.name for cell in grid.cells], {cell.arm: cell.shown for cell in grid.cells}
    writing = partial(disk_errors, out, "the grid's own files", "finished runs are safe")
    with writing():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / GRID_FILE, {"grid": str(grid.path), "cells": names, "labels": labels})
        for name in finished:
            (out / name / FAILED_FILE).unlink(missing_ok=True)  # of a time when it was not
    todo = [cell for cell in own if cell.name not in finished]
    busy: dict[str, State] = {}
    bar = ProgressBar(len(own), "ablate", "cell", initial=len(own) - len(todo), quiet=quiet)
    with _Pool(jobs) as pool, stop_flag(on_stop=pool.stop), bar:
        started = {pool.submit(command(cell, out, opened), out / cell.name): cell.name for cell in todo}
        for future in as_completed(started):
            state = future.result()
            if state is not None and state.state == BUSY_STATE:
                busy[started[future]] = state
            if not pool.stopped:
                bar.update()
    if pool.stopped:
        raise SystemExit(STOPPED)
    # Of calls that end at once, the last sees what the others have done.
    with writing(), locked(out / ".table.lock"):
        answer = _summary(grid, out, opened, busy, {cell.name for cell in own})
        _write_table(out, answer)
    return answer


class _Pool:
    """Runs cells, at most `jobs` at once, each a process group of its own: Ctrl-C reaches it as SIGTERM, from here."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.stopped = jobs, False
        self._executor = ThreadPoolExecutor(jobs, thread_name_prefix="cell")
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()  # a signal may arrive while this thread is in `stop`

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None:
            self.stop()
        self._executor.shutdown(cancel_futures=kind is not None)

    def submit(self, command: Sequence[str], run: Path) -> Future[State | None]:
        """A process for one cell; the result says what came of it if it is not done."""
        return self._executor.submit(self._run, command, run)

    def stop(self) -> None:
        """Ask every running cell to write a checkpoint and end."""
        self.stopped = True
        with self._lock:
            for process in self._running:
                process.terminate()

    def _run(self, command: Sequence[str], run: Path) -> State | None:
        if self.stopped:
            return State(state=TODO)
        slot = self._slots.get()
        try:
            run.mkdir(parents=True, exist_ok=True)
            (run / FAILED_FILE).unlink(missing_ok=True)  # of an earlier try
            with (run / LOG_FILE).open("ab") as log:
                start = log.tell()
                process = subprocess.Popen(
                    command, stdout=log, stderr=log, env=self._environment(slot), start_new_session=True
                )
                with self._lock:
                    self._running.add(process)
                if self.stopped:
                    process.terminate()
                status = process.wait()
                with self._lock:
                    self._running.discard(process)
            return _outcome(run, status, start)
        finally:
            self._slots.put(slot)

    def _environment(self, slot: int) -> dict[str, str]:
        """This package importable; with several jobs, a share of the threads and, of several GPUs, one each."""
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        environment = {**os.environ, "PYTHONPATH": path}
        if self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // self.jobs)))
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            devices = [name for name in visible if name] or [str(i) for i in range(torch.cuda.device_count())]
            if len(devices) > 1:
                environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        return environment


def _outcome(run: Path, status: int, start: int) -> State | None:
    """Record how a cell's process ended; its own part of the log begins at byte `start`."""
    if status == 0:
        (run / FAILED_FILE).unlink(missing_ok=True)
        return None
    if status == BUSY:
        return State(state=BUSY_STATE, reason="another process has it")
    if status in (STOPPED, -signal.SIGTERM, -signal.SIGINT):
        (run / FAILED_FILE).unlink(missing_ok=True)
        return State(state=PART)
    if status < 0:
        reason = f"killed by {signal.Signals(-status).name}"
    else:
        lines = (run / LOG_FILE).read_bytes()[start:].decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        reason = why_ended(said).removeprefix("error: ") if said else f"exit status {status}"
    write_json(run / FAILED_FILE, {"reason": reason, "exit_status": status})
    return State(state=FAILED, reason=reason)


def _summary(
    grid: Grid, out: Path, opened: Opened, busy: Mapping[str, State], own: set[str]
) -> dict[str, Any]:
    states = {
        cell.name: found
        if (found := state_of(cell, grid, out, opened)).state == DONE
        else busy.get(cell.name, found)
        for cell in grid.cells
    }
    done = [cell for cell in grid.cells if states[cell.name].state == DONE]
    scores = collect_scores(grid, out, done)
    stores, data = describe_stores(grid, opened), grid.cells[0].config.data
    unfinished = [
        {"cell": name, "state": state.state, "reason": state.reason or "run again to go on"}
        for name, state in states.items()
        if state.state != DONE
    ]
    return {
        "grid": str(grid.path),
        "out": str(out),
        "stores": stores,
        "reference": grid.reference,
        "notes": notes_of(grid),
        "image_ids_file": grid.cells[0].config.image_ids_file,
        "split_seeds": list(dict.fromkeys(cell.config.split_seed for cell in grid.cells)),
        "codes": collect_codes(out, done),
        "counts": dict(Counter(state.state for state in states.values())),
        "own_unfinished": sum(cell["cell"] in own for cell in unfinished),
        "unfinished": unfinished,
        "data": {"dataset": data.dataset, "split_by": data.split_by, "fingerprint": opened.data_fingerprint},
        "model_sizes": model_sizes(scores),
        "prior": prior_scores(grid, stores, scores),
        "rows": rows_as_json(build_rows(grid, done, scores, collect_labels(out, done))),
    }


def _write_table(out: Path, answer: Mapping[str, Any]) -> None:
    write_json(out / "table.json", answer)
    texts = {
        "table.csv": rows_as_csv(answer["rows"]),
        "table.txt": as_text(answer) + "\n",
        "table.tex": as_latex(answer),
        "chart.svg": draw(answer),
    }
    for name, text in texts.items():
        if text is not None:
            publish_file(out / name, text.encode())
