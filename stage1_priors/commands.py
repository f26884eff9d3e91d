"""The commands of stage 1: `l2l priors`, `l2l fetch priors`, `l2l submit priors`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.console import (
    DryRun,
    Json,
    MovedRoot,
    Quiet,
    Set,
    Site,
    Store,
    as_arguments,
    fetched,
    only_answers_on_stdout,
    recipe_of,
    show,
    submit_work,
    text_of_mapping,
    text_of_models,
)
from shared.errors import DataError


def priors_run(
    recipe: Annotated[str, typer.Argument(help="Name in stage1_priors/recipes.py.")],
    overrides: Set = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="The first N pairs alone, as a store of its own, which a run without it takes over.",
        ),
    ] = None,
    dry_run: DryRun = False,
    worker: Annotated[int, typer.Option(help="Number of this process, from 0.")] = 0,
    num_workers: Annotated[int, typer.Option(help="Independent processes that share the store.")] = 1,
    workers: Annotated[
        str,
        typer.Option(
            help="Start this many workers here and wait for them; auto is one per engine.gpus GPUs."
        ),
    ] = "1",
    shards: Annotated[
        str, typer.Option(hidden=True, help="Shards that the workers of one start divide, such as 0-2,5.")
    ] = "",
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Ask again for rows whose image or question failed, and no others."
        ),
    ] = False,
    expect: Annotated[
        Path | None, typer.Option(hidden=True, help="Stop unless this is the store (batch jobs).")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fill a prior store; only what is missing is asked for."""
    from stage1_priors.recipes import RECIPES

    config = recipe_of(RECIPES, recipe, overrides)
    from shared.config import apply_overrides, idle_overrides
    from shared.ranges import from_ranges
    from shared.runlog import say
    from shared.stopping import said_on_interrupt
    from stage1_priors.config import PriorsConfig
    from stage1_priors.dry_run import describe_plan
    from stage1_priors.memory import MemoryFull, start_anew
    from stage1_priors.read_fields import idle_fields
    from stage1_priors.run import run_priors
    from stage1_priors.worker_env import num_workers_of
    from stage1_priors.workers import run_workers

    if limit is not None:
        if not isinstance(config, PriorsConfig):
            raise DataError(
                "--limit is for recipes that ask a model; masks from elsewhere are read all at once"
            )
        overrides = [*(overrides or []), f"limit={limit}"]
        config = apply_overrides(config, overrides[-1:])
    if (num_workers > 1 or shards) and workers != "1":
        raise DataError("--workers starts its own workers; it does not go with --worker and --num-workers")
    dealt = from_ranges(shards, "--shards") if shards else None
    gpus_each = config.engine.gpus if isinstance(config, PriorsConfig) else 1
    if retry_failed and dry_run:
        raise DataError("--retry-failed has no --dry-run: `l2l priors status` counts the rows that failed")
    still, environment = quiet or as_json, dict(os.environ)
    for line in idle_overrides(idle_fields(config), overrides or []):
        say(f"note: {line}", still)
    try:
        with only_answers_on_stdout(), said_on_interrupt("the shards that are written are kept", still):
            if dry_run:
                answer = describe_plan(config, quiet=still)
            elif (started_here := num_workers_of(workers, gpus_each)) > 1:
                arguments = as_arguments(recipe, overrides)
                answer = {
                    "store": str(
                        run_workers(config, started_here, arguments, retry_failed=retry_failed, quiet=still)
                    )
                }
            else:
                store = run_priors(
                    config,
                    worker=worker,
                    num_workers=num_workers,
                    dealt=dealt,
                    expected=expect,
                    retry_failed=retry_failed,
                    quiet=still,
                )
                answer = {"store": str(store)}
    except MemoryFull as full:
        say(str(full), still)
        start_anew(environment)
    show(answer, as_json, _text_of_plan if dry_run else lambda made: made["store"])


def _text_of_plan(plan: Mapping[str, Any]) -> str:
    """A plan with a line for each difference from the nearest store."""
    if "changed" not in plan:
        return text_of_mapping(plan)
    return text_of_mapping({**plan, "changed": dict(line.split(": ", 1) for line in plan["changed"])})


def priors_status(store: Store, as_json: Json = False) -> None:
    """Say how much of a store is done."""
    from shared.store.verify import store_status

    show(store_status(store), as_json, _text_of_status)


def _text_of_status(found: Mapping[str, Any]) -> str:
    """How much is done and what the answers were, before what the rows depend on."""
    left = found["pending_shards"]
    first = {
        "path": found["path"],
        "complete": found["complete"],
        "rows": f"{found['rows_done']} of {found['num_rows']}",
        **(
            {}
            if found["limit"] is None
            else {"limit": f"the first {found['limit']} pairs of its splits alone"}
        ),
        "shards": f"{len(found['done_shards'])} of {found['num_shards']}",
        **({"pending_shards": left} if left else {}),
        **{name: found[name] for name in ("status_counts", "reused", "answers", "canary", "data")},
        "fingerprint": found["fingerprint"],
        "fingerprint_fields": found["fingerprint_fields"],
    }
    return text_of_mapping(first)


def priors_verify(
    store: Store,
    repair: Annotated[
        bool, typer.Option("--repair", help="Let the next run write damaged shards again.")
    ] = False,
    complete: Annotated[
        bool, typer.Option("--complete", help="Exit status 1 for an unfinished store, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare every byte of a store with its checksums; exit status 1 if one differs."""
    from shared.store.verify import repair_store, verify_store

    report = verify_store(store)
    if repair and not report["ok"]:
        repair_store(store, report["bad_shards"])
    show(report, as_json, text_of_mapping)
    if not report["ok"] or (complete and report["pending_shards"]):
        raise typer.Exit(1)


def priors_score(
    store: Store,
    split: Annotated[str | None, typer.Option(help="One split; default all.")] = None,
    root: MovedRoot = "",
    as_json: Json = False,
) -> None:
    """Score a store's own masks and boxes against the ground truth."""
    from stage1_priors.quality import score_store

    with only_answers_on_stdout():
        scores = score_store(store, split, root)
    show(scores, as_json, text_of_mapping)


def priors_inspect(
    store: Store,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one page to this HTML file instead.")
    ] = None,
    text: Annotated[str, typer.Option("--find", help="Part of the expression or of the sample id.")] = "",
    status: Annotated[str, typer.Option(help="A status, 'without a prior' or 'with a prior'.")] = "",
    root: MovedRoot = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 is any free one.")] = 0,
    as_json: Json = False,
) -> None:
    """Look at a store in a browser: answers, confidences, masks over the images; Ctrl-C ends it."""
    from stage1_priors.inspect import write_inspection
    from stage1_priors.inspect.catalogue import Query

    query = Query(text=text, status=status)
    if out is not None:
        found = write_inspection(store, out, query, root)
        show({"page": str(out), "found": found}, as_json, lambda made: f"page: {made['page']}")
        return
    from stage1_priors.inspect.server import address, make_server
    from stage1_priors.inspect.view import open_view

    with make_server(open_view(store, root), port) as server:
        url = address(server) + query.address()
        show({"url": url}, as_json, lambda made: f"{made['url']} (Ctrl-C ends it)")
        server.serve_forever()


def fetch_priors(
    recipe: Annotated[str, typer.Argument(help="Name in stage1_priors/recipes.py.")],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fetch the multimodal model and the mask proposer's, with their processors."""
    from stage1_priors.recipes import RECIPES

    config = recipe_of(RECIPES, recipe, overrides)
    from stage1_priors.hub_models import hub_models

    show({"models": fetched(hub_models(config))}, as_json, text_of_models)


def submit_priors(
    recipe: Annotated[str, typer.Argument(help="Name in stage1_priors/recipes.py.")],
    overrides: Set = None,
    tasks: Annotated[int, typer.Option(min=1, help="Workers, each on engine.gpus GPUs.")] = 8,
    site: Site = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fill a prior store by an array of workers, then verify it. Submit it again to go on, with any --tasks."""
    from stage1_priors.recipes import RECIPES

    config = recipe_of(RECIPES, recipe, overrides)
    from shared.cluster.script import own_interpreter
    from shared.cluster.site import read_site
    from shared.cluster.submit import has_slurm
    from stage1_priors.cluster_jobs import plan_work
    from stage1_priors.hub_models import hub_models

    if not dry_run:
        fetched(hub_models(config))
    with only_answers_on_stdout():
        elsewhere = own_interpreter(read_site(site)) if has_slurm() else []
        work = plan_work(config, as_arguments(recipe, overrides), tasks, elsewhere, quiet=as_json)
    submit_work(work, site, dry_run, as_json)
