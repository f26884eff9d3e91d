"""What the commands of both stages share: options, and how an answer is shown.

Answers go to standard output, progress and messages to standard error. With `--json` a command prints exactly one JSON
object on standard output.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shared.errors import DataError, unknown_recipe

if TYPE_CHECKING:
    from shared.cluster.submit import Work
    from shared.hub import HubModel

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=C", help="Change one field of the recipe; see `l2l recipes`. May be repeated."
    ),
]
MovedRoot = Annotated[str, typer.Option("--root", help="Where the data set lies now, if it was moved.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; do nothing.")]
Site = Annotated[
    Path | None,
    typer.Option("--site", metavar="FILE", help="What the cluster is like; default cluster.toml."),
]
Store = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a prior store (*.zarr).")]


def show(answer: Any, as_json: bool, as_text: Callable[[Any], str]) -> None:
    """Print an answer: one JSON object, or text. Numbers that are not finite are null in JSON."""
    if not as_json:
        print(as_text(answer), flush=True)
        return
    from shared.runlog import finite_or_none

    print(json.dumps(finite_or_none(answer), allow_nan=False), flush=True)


@contextmanager
def only_answers_on_stdout() -> Iterator[None]:
    """Send what libraries print on standard output to standard error, child processes' output included."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def speaks() -> bool:
    """Whether this process is the one that answers, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def text_of_mapping(values: Mapping[str, Any], indent: str = "") -> str:
    """`name: value` a line; nested mappings are indented, long lists are counted, and what there is none of is `-`."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}:", text_of_mapping(value, indent + "  ")]
        elif isinstance(value, list | tuple) and len(value) > 12:
            lines.append(f"{indent}{name}: {len(value)} values, {value[0]} .. {value[-1]}")
        elif isinstance(value, list | tuple):
            lines.append(f"{indent}{name}: {', '.join(map(str, value)) or '-'}")
        else:
            lines.append(f"{indent}{name}: {_text_of(value)}")
    return "\n".join(lines)


def _text_of(value: Any) -> str:
    if value is None or isinstance(value, Mapping):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def recipe_of(recipes: Mapping[str, Callable[[], T]], name: str, overrides: Sequence[str] | None = None) -> T:
    """The config of the recipe `name`, with the changes that `--set` asks for.

    Raises:
        DataError: No such recipe, or a change that is none.
    """
    from shared.config import apply_overrides

    if name not in recipes:
        raise DataError(unknown_recipe(name, recipes))
    return apply_overrides(recipes[name](), overrides or [])


def as_arguments(recipe: str | None, overrides: list[str] | None) -> list[str]:
    """A recipe, if any, and its changes as a command takes them."""
    from shared.config import as_options

    return [*([recipe] if recipe else []), *as_options(overrides or [])]


def fetched(models: "list[HubModel]") -> list[dict[str, str]]:
    """Models that are in the local cache afterwards; progress goes to standard error."""
    from shared.hub import fetch_all

    with only_answers_on_stdout():
        return fetch_all(models)


def text_of_models(answer: Mapping[str, Any]) -> str:
    """A line a model."""
    lines = [
        f"{one['field']}: {one['repository']} ({one['revision']}) is commit {one['commit']} in {one['folder']}"
        for one in answer["models"]
    ]
    return "\n".join(lines or ["nothing to fetch: no model is named by a repository"])


def submit_work(work: "Work", site_file: Path | None, dry_run: bool, as_json: bool) -> None:
    """Submit jobs, or print their scripts, or do their work here."""
    from shared.cluster.site import read_site
    from shared.cluster.submit import has_slurm, run_here, sbatch_commands, scripts, submit, with_array_size

    site = with_array_size(read_site(site_file))
    for line in work.notes_at(site) if dry_run or has_slurm() else work.notes:
        print(line, file=sys.stderr, flush=True)
    answer: dict[str, Any] = {"target": str(work.target), "folder": str(work.folder), "jobs": []}
    if dry_run:
        files = scripts(work, site)
        for index, (job, (file, text)) in enumerate(zip(work.jobs, files.items(), strict=True)):
            calls = sbatch_commands(job, site, file, [f"<{other.name}>" for other in work.jobs[:index]])
            answer["jobs"].append({"name": job.name, "script": str(file), "sbatch": calls, "text": text})
    elif not work.jobs:
        answer["note"] = "done already, nothing to submit"
    elif has_slurm():
        answer["jobs"] = submit(work, site)
    else:
        print(
            f"no sbatch on this machine: the work is done here, on {socket.gethostname()}, and now; if this is a login "
            "node of a cluster, press Ctrl-C and load Slurm's commands first",
            file=sys.stderr,
            flush=True,
        )
        with only_answers_on_stdout():
            run_here(work)
        answer["note"] = "done here, without Slurm"
    show(answer, as_json, _text_of_jobs)


def _text_of_jobs(answer: Mapping[str, Any]) -> str:
    """The scripts of a dry run, else a line per job."""
    lines = []
    for job in answer["jobs"]:
        if "text" in job:
            calls = [" ".join(call) for call in job["sbatch"]]
            lines += [f"#### {job['script']}", *(f"#### {call}" for call in calls), job["text"]]
        else:
            tasks = f"{len(job['tasks'])} task{'s' if len(job['tasks']) > 1 else ''}"
            lines.append(f"{job['name']}: job {job['job']}, {tasks}, {job['script']}")
    if "note" in answer:
        lines.append(f"{answer['target']}: {answer['note']}")
    elif not any("text" in job for job in answer["jobs"]):
        lines.append(f"how they fare: l2l status {answer['target']}")
    return "\n".join(lines)
