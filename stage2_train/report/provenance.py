"""“How this was made”: facts of each run side by side, settings that differ, versions, commands."""

import json
import shlex
from dataclasses import dataclass
from typing import Any

from stage2_train.report.run_data import RunData, finite
from stage2_train.report.tables import labels_text

PROGRAM = "l2l"
"""Name of the command-line program."""


@dataclass(frozen=True, kw_only=True)
class FactRow:
    """One fact of every run."""

    name: str
    """What it is."""
    values: tuple[str, ...]
    """One value per run."""

    @property
    def differs(self) -> bool:
        """Whether the runs do not share it."""
        return len(set(self.values)) > 1


def fact_rows(runs: list[RunData]) -> list[FactRow]:
    """Facts that make a run comparable with another; unknown ones are a dash."""
    columns = [_facts(run) for run in runs]
    return [FactRow(name=name, values=tuple(column[name] for column in columns)) for name in columns[0]]


def version_rows(runs: list[RunData]) -> list[FactRow]:
    """Versions of the software each run was made with."""
    tables = [run.config.get("versions") for run in runs]
    columns = [table if isinstance(table, dict) else {} for table in tables]
    names = dict.fromkeys(name for column in columns for name in column)
    return [FactRow(name=str(n), values=tuple(_text(column.get(n)) for column in columns)) for n in names]


def differing_settings(runs: list[RunData]) -> list[FactRow]:
    """Leaves of the configurations that the runs do not share."""
    columns = [dict(_leaves(run.config.get("config"), "")) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [FactRow(name=name, values=tuple(column.get(name, "–") for column in columns)) for name in names]
    return [row for row in rows if row.differs]


def commands(runs: list[RunData]) -> list[str]:
    """Shell commands that repeat the runs, their scores and the report.

    A run of several processes is started as one of one node; on more nodes the same number must be reached otherwise.
    """
    lines = list(dict.fromkeys(line for run in runs for line in _needed_first(run)))
    for run in runs:
        lines += [train_command(run), *_scorings(run)]
    return [*lines, shlex.join([PROGRAM, "report", *(str(run.path) for run in runs)])]


def train_command(run: RunData, *more: str) -> str:
    """The shell command that trains a run, with further options."""
    recipe, overrides = run.config.get("recipe") or "RECIPE", run.config.get("overrides")
    processes = run.config.get("num_processes")
    several = isinstance(processes, int) and processes > 1
    launcher = ["torchrun", "--nproc_per_node", str(processes), "cli.py"] if several else [PROGRAM]
    parts = [*launcher, "train", str(recipe), *more, "--out", str(run.path)]
    for override in overrides if isinstance(overrides, list) else []:
        parts += ["--set", str(override)]
    return shlex.join(parts)


def _needed_first(run: RunData) -> list[str]:
    """Comments: the data and the prior store that have to be there; a store does not say of which recipe it is."""
    root = shlex.quote(str(run.data.get("root")))
    lines = []
    if run.data:
        named = f"{run.data.get('dataset')} ({run.data.get('split_by', 'unc')}) in {root}"
        lines.append(
            f"# Needed first: the data {named}, annotations {_text(run.config.get('data_fingerprint'))}"
        )
        if run.data.get("dataset") == "refshapes":
            lines[-1] += f"; {PROGRAM} data synth {root} draws the embedded ones"
    if run.store:
        place, fingerprint = shlex.quote(str(run.store.get("path"))), _text(run.store.get("fingerprint"))
        lines.append(f"# Needed first: the prior store {place}, fingerprint {fingerprint}")
        lines[-1] += (
            f"; {PROGRAM} priors run RECIPE --set data.root={root} makes it, with the recipe of stage 1 that it had"
        )
    return [" ".join(line.split()) for line in lines]


def _scorings(run: RunData) -> list[str]:
    """A command for each data set that a run was scored on, and for each choice of second passes."""
    found: dict[tuple[str, ...], list[str]] = {}
    for filed, data in run.evals.items():
        scored = data.summary.get("data")
        scored = scored if isinstance(scored, dict) else {}
        options = []
        if scored.get("name"):
            options = ["--data-name", str(scored["name"]), "--root", str(scored.get("root"))]
            for option, field in (("--dataset", "dataset"), ("--split-by", "split_by")):
                if scored.get(field) != run.data.get(field):
                    options += [option, str(scored.get(field))]
        options += ["--self-guided"] if data.summary.get("self_guided") else []
        options += ["--with-prior"] if data.summary.get("with_prior") else []
        found.setdefault(tuple(options), []).append(str(scored.get("split", filed)))
    return [
        shlex.join([PROGRAM, "eval", str(run.path), *(p for s in splits for p in ("--split", s)), *options])
        for options, splits in found.items()
    ]


def pretty_config(run: RunData) -> str:
    """`config.json`, indented."""
    return json.dumps(run.config, indent=2, ensure_ascii=False, default=str)


def _facts(run: RunData) -> dict[str, str]:
    data = run.data
    step = finite(run.done.get("step"))
    return {
        "method": run.method,
        "recipe": _text(run.config.get("recipe")),
        "data set": " ".join(str(data[key]) for key in ("dataset", "split_by") if data.get(key)) or "–",
        "annotations, hash": _text(run.config.get("data_fingerprint")),
        "seed": _text(run.seed),
        "labels": labels_text(run),
        "labelled images, hash": _text(run.split.get("hash")),
        "prior store, fingerprint": _text(run.store.get("fingerprint")) if run.store else "none",
        "global batch": _batch_text(run.config.get("global_batch")),
        "processes": ", then ".join(map(str, run.num_processes)) or "–",
        "code": ", then ".join(run.codes) or "–",
        "optimiser steps": "–" if step is None else f"{step:,.0f}",
        "wall time": _wall_text(run),
        "finished": "yes" if run.done else "no",
    }


def _batch_text(batch: Any) -> str:
    """`{"labelled": 16, "unlabelled": 16}` -> `16 labelled + 16 unlabelled`."""
    if isinstance(batch, dict):
        return " + ".join(f"{_text(count)} {name}" for name, count in batch.items())
    return _text(batch)


def _wall_text(run: RunData) -> str:
    seconds = finite(run.done.get("seconds"))
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _leaves(tree: Any, prefix: str) -> list[tuple[str, str]]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), _text(tree))]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
