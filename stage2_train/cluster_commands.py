"""The commands of stage 2 around batch jobs: fetching what they read, submitting them."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import (
    DryRun,
    Json,
    Set,
    Site,
    as_arguments,
    fetched,
    only_answers_on_stdout,
    show,
    submit_work,
    text_of_models,
)
from shared.errors import DataError
from stage2_train.commands import RECIPE_HELP, Recipe, say_what_is_idle

After = Annotated[
    Path | None,
    typer.Option(
        "--after",
        metavar="STORE",
        help="Read this store, and begin once the jobs that fill it have ended well; else be cancelled.",
    ),
]


def fetch_train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help=RECIPE_HELP)],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fetch the network's towers and tokenizer."""
    from stage2_train.hub_models import hub_models
    from stage2_train.run_again import start_of

    config = start_of(recipe, overrides or []).config
    show({"models": fetched(hub_models(config.segmentor))}, as_json, text_of_models)


def fetch_ablate(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="TOML file.")],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fetch the towers and tokenizers of all runs of a grid."""
    from stage2_train.ablate_grid import read_grid
    from stage2_train.cluster_jobs import hub_models_of

    models = hub_models_of(read_grid(grid, overrides or []))
    show({"models": fetched(models)}, as_json, text_of_models)


def submit_train(
    recipe: Recipe = None,
    overrides: Set = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder; default runs/<recipe>.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    processes: Annotated[
        int, typer.Option(min=0, help="Processes per node; 0: one per GPU of the site's nodes.")
    ] = 0,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Split to score once the run is finished; may be repeated."),
    ] = None,
    after: After = None,
    site: Site = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a run, or go on with it. Before its time is up it writes a checkpoint and is queued again."""
    from shared.cluster.site import read_site
    from stage2_train.cluster_jobs import plan_training
    from stage2_train.hub_models import hub_models
    from stage2_train.run_again import start_in

    changes = _with_store_of(after, overrides)
    start, folder = start_in(recipe, changes, out, resume=True)
    config = start.config
    say_what_is_idle(config, overrides or [])
    each = processes or max(1, read_site(site).gpus_per_node)
    if not dry_run:
        fetched(hub_models(config.segmentor))
    with only_answers_on_stdout():
        arguments = as_arguments(recipe, changes)
        work = plan_training(
            config, arguments, folder, nodes, each, after=_jobs_of(after), splits=split or []
        )
    submit_work(work, site, dry_run, as_json)


def submit_ablate(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="TOML file.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the runs; default runs/<name of the file>.")
    ] = None,
    overrides: Set = None,
    tasks: Annotated[int, typer.Option(min=0, help="Tasks, one GPU each; 0: one per run of the grid.")] = 0,
    after: After = None,
    site: Site = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train and score a grid of runs by an array. Submit it again to go on, with any --tasks."""
    from stage2_train.ablate_grid import read_grid
    from stage2_train.cluster_jobs import hub_models_of, plan_grid

    cells, changes = read_grid(grid, overrides or []), overrides or []
    if after is not None and not any(Path(cell.config.store) == after for cell in cells.cells):
        changes = _with_store_of(after, overrides)
        cells = read_grid(grid, changes)
    if not dry_run:
        fetched(hub_models_of(cells))
    with only_answers_on_stdout():
        folder = out or Path("runs") / grid.stem
        work = plan_grid(cells, folder, tasks, changes, after, _jobs_of(after))
    submit_work(work, site, dry_run, as_json)


def _with_store_of(after: Path | None, overrides: list[str] | None) -> list[str]:
    """Changes to a recipe, and the one that lets it read the store it waits for.

    Raises:
        DataError: A store is named besides.
    """
    from shared.config import changed_field

    given = list(overrides or [])
    if after is None:
        return given
    if any(changed_field(change) == "store" for change in given):
        raise DataError("--after names the store that is read; leave out --set store=...")
    return [*given, f"store={after}"]


def _jobs_of(after: Path | None) -> tuple[str, ...]:
    """Ids of the jobs that still write a store; none if it is written, or nobody writes it."""
    from shared.cluster.submit import jobs_folder, unended

    return () if after is None else tuple(unended(jobs_folder(after)))
