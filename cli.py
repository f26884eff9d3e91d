"""The command line, `l2l`: a thin shell that imports a stage only inside the command that needs it.

Answers go to standard output, progress and messages to standard error. With `--json` a command prints exactly one JSON
object on standard output. Exit status: 0 done, 1 the answer is no (a failed check), 2 unusable input (one line
`error: ...`), 75 stopped in order by SIGTERM or SIGUSR1 (priors, a training, a grid), 130 interrupted.
"""

import inspect
import json
import os
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shared.errors import DataError

if TYPE_CHECKING:
    from shared.cluster.submit import Work
    from shared.config import DataConfig
    from shared.hub import HubModel
    from stage2_train.config import TrainConfig

T = TypeVar("T")

app = typer.Typer(
    help="Learning to Label: referring segmentation from few masks and a frozen multimodal model, in two stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Make, check and split data in the REFER layout.", no_args_is_help=True)
priors_app = typer.Typer(help="Stage 1: write, check and score stores of priors.", no_args_is_help=True)
submit_app = typer.Typer(
    help="Submit batch jobs to Slurm; without Slurm, run them here.", no_args_is_help=True
)
fetch_app = typer.Typer(
    help="Fetch models named by repositories into the local Hugging Face cache; runs and jobs only look there.",
    no_args_is_help=True,
)
weights_app = typer.Typer(help="Published checkpoints.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(priors_app, name="priors")
app.add_typer(fetch_app, name="fetch")
app.add_typer(submit_app, name="submit")
app.add_typer(weights_app, name="weights")

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
Root = Annotated[
    Path, typer.Argument(metavar="ROOT", help="Folder that holds images/ and <dataset>/, or a .jsonl file.")
]
Dataset = Annotated[str, typer.Option("--dataset", help="Sub-folder of a folder ROOT, for example refcoco.")]
SplitBy = Annotated[str, typer.Option("--split-by", help="unc, umd or google; for a folder ROOT.")]
Site = Annotated[
    Path | None,
    typer.Option("--site", metavar="FILE", help="What the cluster is like; default cluster.toml."),
]
After = Annotated[
    Path | None,
    typer.Option(
        "--after",
        metavar="STORE",
        help="Read this store, and begin once the jobs that fill it have ended well; else be cancelled.",
    ),
]
Store = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a prior store (*.zarr).")]


def main() -> None:
    """Run the command line; the console script `l2l`."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a command has one progress line, its own
    try:
        app()
    except DataError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed here, and what would not work and why."""
    from shared.doctor import examine, format_report

    report = examine()
    _show(report, as_json, format_report)


@app.command()
def recipes(
    name: Annotated[str, typer.Argument(help="A recipe; without it, all are listed.")] = "",
    as_json: Json = False,
) -> None:
    """List the recipes of both stages, or every field of one: its value and what it means."""
    from shared.config_fields import config_fields
    from stage1_priors.recipes import RECIPES as PRIORS
    from stage2_train.recipes import RECIPES as TRAIN

    stages: dict[str, Mapping[str, Callable[[], Any]]] = {"priors run": PRIORS, "train": TRAIN}
    if not name:
        listed = {
            stage: {known: (inspect.getdoc(recipe) or "").split("\n")[0] for known, recipe in of.items()}
            for stage, of in stages.items()
        }
        _show(listed, as_json, _text_of_recipes)
        return
    holding = {stage: of for stage, of in stages.items() if name in of}
    if not holding:
        _recipe({known: recipe for of in stages.values() for known, recipe in of.items()}, name)
    fields = {
        stage: {
            field.path: {"value": field.text, "meaning": field.meaning} for field in config_fields(of[name]())
        }
        for stage, of in holding.items()
    }
    _show(fields, as_json, _text_of_fields)


@data_app.command("synth")
def data_synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Root folder to write below.")],
    flavour: Annotated[str, typer.Option(help="refshapes, refshapes+ or refshapesg.")] = "refshapes",
    images: Annotated[int, typer.Option(help="Images of the train split.")] = 2000,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw the embedded data set."""
    from shared.synth.refshapes import write_refshapes

    with _only_answers_on_stdout():
        summary = write_refshapes(out, flavour, images, seed, progress=not as_json)
    _show(summary, as_json, _text_of_synth)


@data_app.command("init")
def data_init(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    images: Annotated[int, typer.Option(help="Training images to draw; a tenth get masks.")] = 8,
    as_json: Json = False,
) -> None:
    """Write an example of your own data: a commented JSONL file and drawn images."""
    from shared.synth.example import write_example

    _show(write_example(out, images), as_json, _text_of_mapping)


@data_app.command("import")
def data_import(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A .parquet file, or a folder of them.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .jsonl file to make; images go beside it.")],
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME=COLUMN", help="A column of another name; may be repeated."),
    ] = None,
    corners: Annotated[
        bool, typer.Option("--corners", help="Boxes are x0, y0, x1, y1 instead of x, y, width, height.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn a Parquet export of Hugging Face `datasets` into your own data: a JSONL file and images."""
    from shared.parquet import import_parquet

    columns = {}
    for one in column or []:
        name, separator, value = one.partition("=")
        if not separator or not value:
            raise DataError(f"--column is {one!r}, expected NAME=COLUMN")
        columns[name] = value
    with _only_answers_on_stdout():
        answer = import_parquet(source, out, columns=columns, corners=corners, quiet=as_json)
    _show(answer, as_json, _text_of_mapping)


@data_app.command("check")
def data_check(root: Root, dataset: Dataset = "", split_by: SplitBy = "", as_json: Json = False) -> None:
    """Look for every fault in a data set; exit status 1 if there is one."""
    from shared.datasets import dataset_layout
    from shared.refer_check import check_layout

    with _only_answers_on_stdout():
        layout = dataset_layout(_data_config(root, dataset, split_by))
        report = check_layout(layout, progress=not as_json)
    _show(report.to_dict(), as_json, lambda _: report.format_table())
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("pack")
def data_pack(root: Root, dataset: Dataset = "", split_by: SplitBy = "", as_json: Json = False) -> None:
    """Put the images of a data set into one file, ROOT/images.h5; run it again to go on, or to add a data set's."""
    from shared.datasets import image_names
    from shared.image_pack import build_pack

    folder, names, folders = image_names(_data_config(root, dataset, split_by))
    answer = build_pack(folder, names, folders, quiet=as_json)
    _show(answer, as_json, _text_of_mapping)


@data_app.command("leakage")
def data_leakage(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder that holds <dataset>/ folders.")],
    dataset: Annotated[
        list[str], typer.Option("--dataset", metavar="D:S", help="For example refcoco:unc; may be repeated.")
    ],
    ids: Annotated[
        list[Path] | None, typer.Option("--ids", metavar="FILE", help="Image ids of other training data.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count COCO images that train splits share with scored splits; exit status 1 if there are any."""
    from shared.leakage import leakage, leakage_records, leakage_table

    overlaps = leakage(root, dataset, ids or [])
    records = leakage_records(overlaps)
    _show(records, as_json, lambda _: leakage_table(overlaps))
    if not records["ok"]:
        raise typer.Exit(1)


@data_app.command("split")
def data_split(
    root: Root,
    dataset: Dataset = "",
    split_by: SplitBy = "",
    *,
    fraction: Annotated[float, typer.Option(help="Labelled share of the train images, in (0, 1].")],
    split_seed: Annotated[
        int, typer.Option(help="Seed of the draw, `split_seed` of a training; not the seed of a run.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Print which train images are labelled, in order of the draw, and what they carry."""
    from shared.datasets import load_dataset
    from shared.splits import labelled_image_ids, split_hash

    config = _data_config(root, dataset, split_by)
    loaded = load_dataset(config)
    ids, names = labelled_image_ids(loaded.drawn_image_ids(), fraction, split_seed), loaded.image_names()
    labelled = set(ids)
    train = loaded.samples("train")
    samples = [sample for sample in train if sample.image_id in labelled and loaded.has_mask(sample)]
    split = {
        "dataset": config.dataset,
        "split_by": config.split_by,
        "fraction": fraction,
        "seed": split_seed,
        "hash": split_hash(ids),
        "num_images": len(ids),
        "num_refs": len({sample.ref_id for sample in samples}),
        "num_sentences": len(samples),
        "image_ids": ids,
        "file_names": [names[image_id] for image_id in ids],
    }
    _show(split, as_json, lambda made: _text_of_split(made, by_name=config.is_jsonl))


@priors_app.command("run")
def priors_run(
    recipe: Annotated[str, typer.Argument(help="Name in stage1_priors/recipes.py.")],
    overrides: Set = None,
    dry_run: DryRun = False,
    worker: Annotated[int, typer.Option(help="Number of this process, from 0.")] = 0,
    num_workers: Annotated[int, typer.Option(help="Independent processes that share the store.")] = 1,
    workers: Annotated[
        str, typer.Option(help="Start this many workers here and wait for them; auto is one per GPU.")
    ] = "1",
    expect: Annotated[
        Path | None, typer.Option(hidden=True, help="Stop unless this is the store (batch jobs).")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Ask the frozen model for what is missing of a store; does nothing if nothing is."""
    from shared.config import apply_overrides
    from stage1_priors.recipes import RECIPES

    config = apply_overrides(_recipe(RECIPES, recipe), overrides or [])
    from stage1_priors.run import describe_plan, run_priors
    from stage1_priors.workers import num_workers_of, run_workers

    if num_workers > 1 and workers != "1":
        raise DataError("--workers starts its own workers; it does not go with --worker and --num-workers")
    with _only_answers_on_stdout():
        if dry_run:
            answer = describe_plan(config)
        elif (started_here := num_workers_of(workers)) > 1:
            arguments = _as_arguments(recipe, overrides)
            answer = {"store": str(run_workers(config, started_here, arguments, quiet=quiet or as_json))}
        else:
            still = quiet or as_json
            store = run_priors(config, worker=worker, num_workers=num_workers, expected=expect, quiet=still)
            answer = {"store": str(store)}
    _show(answer, as_json, _text_of_mapping if dry_run else lambda made: made["store"])


@priors_app.command("status")
def priors_status(store: Store, as_json: Json = False) -> None:
    """Say how much of a store is done."""
    from shared.store.verify import store_status

    _show(store_status(store), as_json, _text_of_mapping)


@priors_app.command("verify")
def priors_verify(
    store: Store,
    repair: Annotated[
        bool, typer.Option("--repair", help="Let the next run write damaged shards again.")
    ] = False,
    complete: Annotated[
        bool, typer.Option("--complete", help="An unfinished store is no good either.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare every byte of a store with its checksums; exit status 1 if one differs."""
    from shared.store.verify import repair_store, verify_store

    report = verify_store(store)
    if repair and not report["ok"]:
        repair_store(store, report["bad_shards"])
    _show(report, as_json, _text_of_mapping)
    if not report["ok"] or (complete and report["pending_shards"]):
        raise typer.Exit(1)


@priors_app.command("score")
def priors_score(
    store: Store,
    split: Annotated[str | None, typer.Option(help="One split; default all.")] = None,
    root: MovedRoot = "",
    as_json: Json = False,
) -> None:
    """Score a store's own masks and boxes against the ground truth."""
    from stage1_priors.quality import score_store

    with _only_answers_on_stdout():
        scores = score_store(store, split, root)
    _show(scores, as_json, _text_of_mapping)


@priors_app.command("inspect")
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
        _show({"page": str(out), "found": found}, as_json, lambda made: f"page: {made['page']}")
        return
    from stage1_priors.inspect.server import address, make_server
    from stage1_priors.inspect.view import open_view

    with make_server(open_view(store, root), port) as server:
        url = address(server) + query.address()
        _show({"url": url}, as_json, lambda made: f"{made['url']} (Ctrl-C ends it)")
        server.serve_forever()


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name in stage2_train/recipes.py.")],
    overrides: Set = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder; default runs/<recipe>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that is already there.")] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Stage 2: train a run to its end, or go on with it."""
    from shared.config import apply_overrides, config_to_dict
    from stage2_train.recipes import RECIPES

    config = apply_overrides(_recipe(RECIPES, recipe), overrides or [])
    folder = out or Path("runs") / recipe
    _say_what_is_idle(config, overrides or [])
    if dry_run:
        from stage2_train.inputs import describe

        with _only_answers_on_stdout():
            plan = {
                "recipe": recipe,
                "run": str(folder),
                "config": config_to_dict(config),
                "plan": describe(config),
            }
        _show(plan, as_json, lambda made: f"run: {made['run']}\n{made['plan']}")
        return
    from stage2_train.train import train as train_run

    with _only_answers_on_stdout():
        done = train_run(
            config, folder, resume=resume, recipe=recipe, overrides=overrides or [], quiet=quiet or as_json
        )
    if _speaks():
        _show({"run": str(folder), **done}, as_json, lambda made: _text_of_run(folder, made))


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Split to score; may be repeated. Default val.")
    ] = None,
    store: Annotated[
        str, typer.Option(help="Store for the prior's own score; default the run's, or the one that fits.")
    ] = "",
    root: MovedRoot = "",
    dataset: Annotated[
        str, typer.Option("--dataset", help="Another data set under --root, for example refcoco+.")
    ] = "",
    split_by: Annotated[str, typer.Option("--split-by", help="Its split; default the run's.")] = "",
    data_name: Annotated[
        str, typer.Option(metavar="NAME", help="What to call data other than the run's; default --dataset.")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="Sentences per pass.")] = 64,
    limit: Annotated[int, typer.Option(min=0, help="Evenly spaced sentences to score; 0 is all.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    self_guided: Annotated[
        bool, typer.Option("--self-guided", help="Also score a second pass that sees the first one's mask.")
    ] = False,
    with_prior: Annotated[
        bool,
        typer.Option(
            "--with-prior", help="Also score a pass that is given the frozen prior: another method, named so."
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a run's network, which sees no prior, and write `eval/<split>.json` and `.jsonl`.

    On other data than it was trained on (--root, --dataset, --data-name) they are `eval/<name>-<split>`. With --limit
    nothing is written: a part of a split is not its score.
    """
    from stage2_train.evaluate import evaluate_run

    with _only_answers_on_stdout():
        scores = {
            name: evaluate_run(
                run,
                name,
                store=store,
                root=root,
                dataset_name=dataset,
                split_by=split_by,
                data_name=data_name,
                batch=batch,
                limit=limit,
                workers=workers,
                self_guided=self_guided,
                with_prior=with_prior,
                write=not limit,
                quiet=quiet or as_json,
            )
            for name in split or ["val"]
        }
    if _speaks():
        _show(scores, as_json, lambda result: _text_of_scores(run, result))


@app.command()
def ablate(
    grid: Annotated[
        Path, typer.Argument(metavar="GRID", help="TOML file; stage2_train/grids/ holds examples.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the runs; default runs/<name of the file>.")
    ] = None,
    overrides: Set = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 1,
    only: Annotated[
        str, typer.Option(metavar="I/N", help="Take share I of N, from 0: for job arrays.")
    ] = "0/1",
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train and score a grid of runs over one prior store, and print one table.

    Run it again to go on: finished runs are skipped. Exit status 1 if a run of this share is not finished.
    """
    from stage2_train.ablate_grid import read_grid

    cells, folder = read_grid(grid, overrides or []), out or Path("runs") / grid.stem
    from stage2_train.ablate import describe_grid, parse_share, run_grid
    from stage2_train.ablate_table import as_text

    with _only_answers_on_stdout():
        share = parse_share(only)
        answer = (
            describe_grid(cells, folder)
            if dry_run
            else run_grid(cells, folder, jobs=jobs, only=share, quiet=quiet or as_json)
        )
    _show(answer, as_json, _text_of_cells if dry_run else as_text)
    if not dry_run and answer["own_unfinished"]:
        raise typer.Exit(1)


@fetch_app.command("priors")
def fetch_priors(
    recipe: Annotated[str, typer.Argument(help="Name in stage1_priors/recipes.py.")],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fetch the multimodal model and the mask proposer's, with their processors."""
    from shared.config import apply_overrides
    from stage1_priors.recipes import RECIPES

    config = apply_overrides(_recipe(RECIPES, recipe), overrides or [])
    from stage1_priors.hub_models import hub_models

    _show({"models": _fetched(hub_models(config))}, as_json, _text_of_models)


@fetch_app.command("train")
def fetch_train(
    recipe: Annotated[str, typer.Argument(help="Name in stage2_train/recipes.py.")],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fetch the network's towers and tokenizer."""
    from shared.config import apply_overrides
    from stage2_train.recipes import RECIPES

    config = apply_overrides(_recipe(RECIPES, recipe), overrides or [])
    from stage2_train.hub_models import hub_models

    _show({"models": _fetched(hub_models(config.segmentor))}, as_json, _text_of_models)


@fetch_app.command("ablate")
def fetch_ablate(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="TOML file.")],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Fetch the towers and tokenizers of all runs of a grid."""
    from stage2_train.ablate_grid import read_grid
    from stage2_train.cluster_jobs import hub_models_of

    models = hub_models_of(read_grid(grid, overrides or []))
    _show({"models": _fetched(models)}, as_json, _text_of_models)


@submit_app.command("priors")
def submit_priors(
    recipe: Annotated[str, typer.Argument(help="Name in stage1_priors/recipes.py.")],
    overrides: Set = None,
    tasks: Annotated[int, typer.Option(min=1, help="Workers, one GPU each.")] = 8,
    site: Site = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fill a prior store by an array of workers, then verify it. Submit it again to go on, with any --tasks."""
    from shared.config import apply_overrides
    from stage1_priors.recipes import RECIPES

    config = apply_overrides(_recipe(RECIPES, recipe), overrides or [])
    from shared.cluster.script import own_interpreter
    from shared.cluster.site import read_site
    from shared.cluster.submit import has_slurm
    from stage1_priors.cluster_jobs import plan_work
    from stage1_priors.hub_models import hub_models

    if not dry_run:
        _fetched(hub_models(config))
    with _only_answers_on_stdout():
        elsewhere = own_interpreter(read_site(site)) if has_slurm() else []
        work = plan_work(config, _as_arguments(recipe, overrides), tasks, elsewhere)
    _submit(work, site, dry_run, as_json)


@submit_app.command("train")
def submit_train(
    recipe: Annotated[str, typer.Argument(help="Name in stage2_train/recipes.py.")],
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
    from shared.config import apply_overrides
    from stage2_train.recipes import RECIPES

    changes = _with_store_of(after, overrides)
    config = apply_overrides(_recipe(RECIPES, recipe), changes)
    from stage2_train.cluster_jobs import plan_training
    from stage2_train.hub_models import hub_models

    _say_what_is_idle(config, overrides or [])
    folder, each = out or Path("runs") / recipe, processes or max(1, read_site(site).gpus_per_node)
    if not dry_run:
        _fetched(hub_models(config.segmentor))
    with _only_answers_on_stdout():
        arguments = _as_arguments(recipe, changes)
        work = plan_training(
            config, arguments, folder, nodes, each, after=_jobs_of(after), splits=split or []
        )
    _submit(work, site, dry_run, as_json)


@submit_app.command("ablate")
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

    changes = _with_store_of(after, overrides)
    cells = read_grid(grid, changes)
    if not dry_run:
        _fetched(hub_models_of(cells))
    with _only_answers_on_stdout():
        folder = out or Path("runs") / grid.stem
        work = plan_grid(cells, folder, tasks, changes, after=_jobs_of(after))
    _submit(work, site, dry_run, as_json)


@app.command()
def status(
    targets: Annotated[
        list[Path], typer.Argument(metavar="RUN|STORE|GRID...", help="Folders of stores, runs or grids.")
    ],
    as_json: Json = False,
) -> None:
    """Say what is done, running, failed and why, from files; of what waits Slurm is asked, where it can be.

    Of several, --json gives one object with the list `targets`.
    """
    from shared.cluster.status import format_status, status_of

    found = [status_of(target) for target in targets]
    if len(found) == 1:
        _show(found[0], as_json, format_status)
    else:
        _show({"targets": found}, as_json, lambda of: "\n\n".join(map(format_status, of["targets"])))


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a model's folder.")],
    image: Annotated[Path | None, typer.Argument(metavar="IMAGE", help="Image file.")] = None,
    expression: Annotated[str, typer.Argument(metavar="EXPRESSION", help="What to look for.")] = "",
    jsonl: Annotated[
        Path | None,
        typer.Option(
            "--jsonl", metavar="FILE", help="Many pairs: {image, expression}, and an id if any, a line."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the results go.")] = Path("predictions"),
    batch: Annotated[int, typer.Option(min=1, help="Pairs per pass.")] = 16,
    no_overlay: Annotated[bool, typer.Option("--no-overlay", help="Leave the overlay PNG out.")] = False,
    as_json: Json = False,
) -> None:
    """Segment an image, or the pairs of a file: mask PNG, overlay PNG and JSON with the RLE, at the original size.

    A file's lines that cannot be used get an error instead, and the exit status is 1; run again, a job goes on.
    """
    if (jsonl is None) == (image is None):
        raise DataError("predict needs either IMAGE and EXPRESSION, or --jsonl FILE")
    from stage2_train.predict import predict_one
    from stage2_train.predict_lines import predict_jsonl

    with _only_answers_on_stdout():
        if jsonl is not None:
            answer = predict_jsonl(model, jsonl, out, batch=batch, with_overlay=not no_overlay)
        else:
            assert image is not None
            answer = predict_one(model, image, expression, out, with_overlay=not no_overlay)
    _show(answer, as_json, _text_of_mapping)
    if answer.get("num_failed"):
        raise typer.Exit(1)


@app.command("export-labels")
def export_labels_of(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write; default RUN/labels.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sentences per pass.")] = 16,
    limit: Annotated[int, typer.Option(min=0, help="First sentences alone; 0 is all.")] = 0,
    root: MovedRoot = "",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the pseudo-labels of the unlabelled sentences as COCO JSON and in the REFER layout."""
    from stage2_train.export_labels import export_labels

    with _only_answers_on_stdout():
        answer = export_labels(
            run, out or run / "labels", batch=batch, limit=limit, root=root, quiet=quiet or as_json
        )
    _show(answer, as_json, _text_of_mapping)


@app.command()
def params(
    recipe: Annotated[str, typer.Argument(help="Name in stage2_train/recipes.py.")],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Count the trainable parameters of a recipe, part by part; no weights are read."""
    from shared.config import apply_overrides
    from stage2_train.recipes import RECIPES

    config = apply_overrides(_recipe(RECIPES, recipe), overrides or [])
    from stage2_train.params import count_parameters

    _show(count_parameters(config.segmentor), as_json, _text_of_counts)


@weights_app.command("convert")
def weights_convert(
    source: Annotated[Path, typer.Argument(metavar="IN.pth", help="The published checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    family: Annotated[str, typer.Option("--from", metavar="FAMILY", help="swin or lavt.")],
    as_json: Json = False,
) -> None:
    """Rename the tensors of a published Swin or LAVT checkpoint; nothing in it is executed."""
    from stage2_train.official_weights import convert

    _show(convert(source, target, family), as_json, _text_of_mapping)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs, and of grids, which stand for their finished runs; the first is the main one.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file; default report.html in the first folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML report of some runs, and print a short table."""
    from stage2_train.report import write_report

    with _only_answers_on_stdout():
        path, table = write_report(runs, out)
    _show(
        {"report": str(path), "table": table},
        as_json,
        lambda made: f"{made['table']}\n\nreport: {made['report']}",
    )


def _data_config(root: Path, dataset: str, split_by: str) -> "DataConfig":
    """Where a data set lies; a JSONL file needs neither name.

    Raises:
        DataError: A folder without both names.
    """
    from shared.config import DataConfig

    if root.suffix != ".jsonl" and not (dataset and split_by):
        own = [path for path in root.glob("*.jsonl") if path.is_file()] if root.is_dir() else []
        hint = f"; or is {own[0]} meant?" if own else ""
        raise DataError(f"{root}: a folder needs --dataset and --split-by{hint}")
    return DataConfig(root=str(root), dataset=dataset, split_by=split_by)


def _as_arguments(recipe: str, overrides: list[str] | None) -> list[str]:
    """A recipe and its changes as a command takes them."""
    from shared.config import as_options

    return [recipe, *as_options(overrides or [])]


def _say_what_is_idle(config: "TrainConfig", overrides: list[str]) -> None:
    """Tell the user of changes that make no difference to a run."""
    from stage2_train.idle_fields import idle_overrides

    if _speaks():
        for line in idle_overrides(config, overrides):
            print(f"note: {line}", file=sys.stderr, flush=True)


def _with_store_of(after: Path | None, overrides: list[str] | None) -> list[str]:
    """Changes to a recipe, and the one that lets it read the store it waits for.

    Raises:
        DataError: A store is named besides.
    """
    given = list(overrides or [])
    if after is None:
        return given
    if any(change.partition("=")[0].strip() == "store" for change in given):
        raise DataError("--after names the store that is read; leave out --set store=...")
    return [*given, f"store={after}"]


def _jobs_of(after: Path | None) -> tuple[str, ...]:
    """Ids of the jobs that still write a store; none if it is written, or nobody writes it."""
    from shared.cluster.submit import jobs_folder, unended

    return () if after is None else tuple(unended(jobs_folder(after)))


def _fetched(models: "list[HubModel]") -> list[dict[str, str]]:
    """Models that are in the local cache afterwards; progress goes to standard error."""
    from shared.hub import fetch_all

    with _only_answers_on_stdout():
        return fetch_all(models)


def _submit(work: "Work", site_file: Path | None, dry_run: bool, as_json: bool) -> None:
    """Submit jobs, or print their scripts, or do their work here."""
    from shared.cluster.site import read_site
    from shared.cluster.submit import has_slurm, run_here, sbatch_commands, scripts, submit, with_array_size

    site = with_array_size(read_site(site_file))
    for line in work.notes:
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
        with _only_answers_on_stdout():
            run_here(work)
        answer["note"] = "done here, without Slurm"
    _show(answer, as_json, _text_of_jobs)


def _speaks() -> bool:
    """Whether this process is the one that answers, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _recipe(recipes: Mapping[str, Callable[[], T]], name: str) -> T:
    """The config of the recipe `name`.

    Raises:
        DataError: No such recipe; the message names those there are.
    """
    if name not in recipes:
        raise DataError(f"no recipe {name!r}; there are {', '.join(recipes)}")
    return recipes[name]()


def _show(answer: Any, as_json: bool, as_text: Callable[[Any], str]) -> None:
    """Print an answer: one JSON object, or text. Numbers that are not finite are null in JSON."""
    if not as_json:
        print(as_text(answer), flush=True)
        return
    from shared.runlog import finite_or_none

    print(json.dumps(finite_or_none(answer), allow_nan=False), flush=True)


@contextmanager
def _only_answers_on_stdout() -> Iterator[None]:
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


def _text_of_mapping(values: Mapping[str, Any], indent: str = "") -> str:
    """`name: value` a line; nested mappings are indented, long lists are counted."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}:", _text_of_mapping(value, indent + "  ")]
        elif isinstance(value, list | tuple) and len(value) > 12:
            lines.append(f"{indent}{name}: {len(value)} values, {value[0]} .. {value[-1]}")
        elif isinstance(value, list | tuple):
            lines.append(f"{indent}{name}: {', '.join(map(str, value)) or '-'}")
        else:
            lines.append(f"{indent}{name}: {f'{value:.4f}' if isinstance(value, float) else value}")
    return "\n".join(lines)


def _text_of_synth(summary: Mapping[str, Any]) -> str:
    lines = [f"{summary['root']}: {summary['dataset']} ({summary['split_by']}), seed {summary['seed']}"]
    for name, counts in summary["splits"].items():
        lines.append(f"  {name:<6} " + ", ".join(f"{number} {what}" for what, number in counts.items()))
    return "\n".join([*lines, f"sha256 {summary['sha256']}"])


def _text_of_split(split: Mapping[str, Any], by_name: bool) -> str:
    """Counts, then an image a line: by its file name where ids are numbers of lines, which move."""
    counts = f"{split['num_images']} images, {split['num_refs']} refs, {split['num_sentences']} sentences"
    listed = split["file_names" if by_name else "image_ids"]
    return f"{counts}; hash {split['hash']}\n" + "\n".join(map(str, listed))


def _text_of_run(folder: Path, done: Mapping[str, Any]) -> str:
    if done.get("already_finished"):
        return f"{folder}: finished before, nothing to do"
    return f"{folder}: {done['step']} steps in {done['seconds']:.0f} s"


def _text_of_scores(run: Path, scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per split, resolution and scorer: the network, its further passes, the frozen prior alone."""
    names = ("oiou", "miou", "pr@0.5", "pr@0.6", "pr@0.7", "pr@0.8", "pr@0.9")
    lines = [str(run), f"{'split':<7}{'size':<10}{'scored':<13}" + "".join(f"{name:>8}" for name in names)]
    for split, result in scores.items():
        size = "x".join(map(str, result["resolution"]))
        scorers = {
            "network": result,
            "self-guided": result.get("self_guided"),
            "with prior": result.get("with_prior"),
            "frozen prior": result.get("prior"),
        }
        for scorer, found in scorers.items():
            for frame, shown in (("original", "original"), ("model", size)):
                if found:
                    cells = "".join(f"{found[frame][name]:>8.4f}" for name in names)
                    lines.append(f"{split:<7}{shown:<10}{scorer:<13}{cells}")
        if result.get("with_prior"):
            lines.append(
                f"{split:<7}with prior: another method, which needs the frozen model's answer to every sentence"
            )
        if not result.get("prior"):
            lines.append(f"{split:<7}{result['prior_note']}")
        if result["shared_with_train"] is None:
            lines.append(
                f"{split:<7}not known how many sentences are of images that were trained on: the run's own data are "
                "gone or have changed"
            )
        elif result["shared_with_train"]:
            lines.append(
                f"{split:<7}{result['shared_with_train']} of {result['num']} sentences are of images that were "
                "trained on"
            )
        if result["limit"]:
            lines.append(f"{split:<7}{result['num']} evenly spaced sentences only; nothing written")
    return "\n".join(lines)


def _text_of_recipes(listed: Mapping[str, Mapping[str, str]]) -> str:
    """A line a recipe, under the command that takes it."""
    lines = []
    for stage, of in listed.items():
        width = max(map(len, of))
        lines += [f"l2l {stage} RECIPE", *(f"  {name:<{width}}  {about}" for name, about in of.items()), ""]
    return "\n".join([*lines, "l2l recipes RECIPE lists the fields of one"])


def _text_of_fields(fields: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """A line a field as `--set` takes it, and its meaning below."""
    lines = []
    for stage, of in fields.items():
        lines += [f"l2l {stage}", ""]
        for path, field in of.items():
            lines.append(f"  {path}={field['value']}")
            lines += textwrap.wrap(field["meaning"], 100, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines).rstrip()


def _text_of_models(answer: Mapping[str, Any]) -> str:
    """A line a model."""
    lines = [
        f"{one['field']}: {one['repository']} ({one['revision']}) is commit {one['commit']} in {one['folder']}"
        for one in answer["models"]
    ]
    return "\n".join(lines or ["nothing to fetch: no model is named by a repository"])


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


def _text_of_cells(plan: Mapping[str, Any]) -> str:
    """A line per cell: its state, name and recipe with changes."""
    store = plan["store"]["path"] if plan["store"] else "none needed"
    lines = [f"out: {plan['out']}", f"store: {store}", f"reference: {plan['reference']}"]
    for name, cell in plan["cells"].items():
        changes = " ".join(f"--set {change}" for change in cell["changes"])
        lines.append(f"{cell['state']:<12}{name}: {cell['recipe']} {changes}")
        if cell["reason"]:
            lines.append(f"{'':<12}{cell['reason']}")
    return "\n".join(lines)


def _text_of_counts(counts: Mapping[str, int]) -> str:
    return "\n".join(f"{name:<10} {number:>13,}" for name, number in counts.items())


if __name__ == "__main__":
    main()
