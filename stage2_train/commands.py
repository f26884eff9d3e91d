"""The commands of stage 2 that work here: training, scoring, grids, prediction, reports."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.console import (
    DryRun,
    Json,
    MovedRoot,
    Quiet,
    Set,
    only_answers_on_stdout,
    show,
    speaks,
    text_of_mapping,
)
from shared.errors import DataError

if TYPE_CHECKING:
    from stage2_train.config import TrainConfig

RECIPE_HELP = "Name of a recipe (`l2l recipes`), or a run's folder, for its settings."

Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE|RUN", help=f"{RECIPE_HELP} Without it, --resume continues the run in --out."
    ),
]


def train(
    recipe: Recipe = None,
    overrides: Set = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder; default runs/<recipe>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that is already there.")] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Stage 2: train a run to its end, or go on with it.

    A new run of another one's settings: name that one's folder instead of a recipe, and --out.
    """
    from stage2_train.run_again import start_in

    start, folder = start_in(recipe, overrides or [], out, resume=resume)
    config = start.config
    say_what_is_idle(config, overrides or [])
    if dry_run:
        from stage2_train.dry_run import as_text, describe

        with only_answers_on_stdout():
            plan = describe(config, start.recipe, folder, resume=resume)
            plan = {"recipe": start.recipe, "run": str(folder), **plan}
        show(plan, as_json, lambda made: f"run: {made['run']}\nrecipe: {made['recipe']}\n{as_text(made)}")
        return
    from stage2_train.processes import ended_together
    from stage2_train.train import train as train_run

    with only_answers_on_stdout(), ended_together():
        done = train_run(
            config,
            folder,
            resume=resume,
            recipe=start.recipe,
            overrides=list(start.overrides),
            quiet=quiet or as_json,
        )
    if speaks():
        show({"run": str(folder), **done}, as_json, lambda made: _text_of_run(folder, made))


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
    split_by: Annotated[
        str, typer.Option("--split-by", help="Its annotations (unc, umd, google); default the run's.")
    ] = "",
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
    from stage2_train.evaluate import evaluate_splits, text_of_scores
    from stage2_train.processes import ended_together

    with only_answers_on_stdout(), ended_together():
        scores = evaluate_splits(
            run,
            split or ["val"],
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
    if speaks():
        show(scores, as_json, lambda result: text_of_scores(run, result))


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
    """Train and score a grid of runs over one data set, and print one table.

    Run it again to go on: finished runs are skipped. Exit status 1 if a run of this share is not finished.
    """
    from shared.runlog import say
    from stage2_train.ablate_grid import read_grid
    from stage2_train.ablate_notes import notes_of

    cells, folder = read_grid(grid, overrides or []), out or Path("runs") / grid.stem
    from shared.stopping import said_on_interrupt
    from stage2_train.ablate import parse_share, run_grid
    from stage2_train.ablate_state import describe_grid, text_of_cells
    from stage2_train.ablate_table import as_text

    still = quiet or as_json
    for note in [] if dry_run else notes_of(cells):
        say(note, still)
    with only_answers_on_stdout(), said_on_interrupt("finished runs and checkpoints are kept", still):
        share = parse_share(only)
        answer = (
            describe_grid(cells, folder)
            if dry_run
            else run_grid(cells, folder, jobs=jobs, only=share, quiet=still)
        )
    show(answer, as_json, text_of_cells if dry_run else as_text)
    if not dry_run and answer["own_unfinished"]:
        raise typer.Exit(1)


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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Segment an image, or the pairs of a file: mask PNG, overlay PNG and JSON with the RLE, at the original size.

    A file's lines that cannot be used get an error instead, and the exit status is 1; run again, a job goes on.
    """
    if (jsonl is None) == (image is None):
        raise DataError("predict needs either IMAGE and EXPRESSION, or --jsonl FILE")
    from stage2_train.predict import predict_one
    from stage2_train.predict_lines import predict_jsonl

    with only_answers_on_stdout():
        if jsonl is not None:
            answer = predict_jsonl(
                model, jsonl, out, batch=batch, with_overlay=not no_overlay, quiet=quiet or as_json
            )
        else:
            assert image is not None
            answer = predict_one(model, image, expression, out, with_overlay=not no_overlay)
    show(answer, as_json, _text_of_prediction)
    if answer.get("num_failed"):
        raise typer.Exit(1)


def export_labels_of(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write; default RUN/labels.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sentences per pass.")] = 16,
    limit: Annotated[int, typer.Option(min=0, help="First sentences alone; 0 is all.")] = 0,
    root: MovedRoot = "",
    store: Annotated[
        str, typer.Option(metavar="STORE", help="Where the run's store lies now, or another one to read.")
    ] = "",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the pseudo-labels of the unlabelled sentences as COCO JSON and in the REFER layout.

    The same command, run again after an interruption, goes on with what is written.
    """
    from stage2_train.export_labels import export_labels

    with only_answers_on_stdout():
        answer = export_labels(
            run,
            out or run / "labels",
            batch=batch,
            limit=limit,
            root=root,
            store=store,
            quiet=quiet or as_json,
        )
    show(answer, as_json, text_of_mapping)


def params(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help=RECIPE_HELP)],
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Count the trainable parameters of a recipe, part by part; no weights are read."""
    from stage2_train.run_again import start_of

    config = start_of(recipe, overrides or []).config
    from stage2_train.params import count_parameters, text_of_counts

    show(count_parameters(config.segmentor), as_json, text_of_counts)


def weights_convert(
    source: Annotated[Path, typer.Argument(metavar="IN.pth", help="The published checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    family: Annotated[str, typer.Option("--from", metavar="FAMILY", help="swin or lavt.")],
    as_json: Json = False,
) -> None:
    """Rename the tensors of a published Swin or LAVT checkpoint; nothing in it is executed."""
    from stage2_train.official_weights import convert

    show(convert(source, target, family), as_json, text_of_mapping)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs, and of grids, which stand for their finished runs; the first is the main one.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="HTML file; default report.html in the folder, of several comparison.html in the first.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML report of some runs, and print a short table."""
    from stage2_train.report import write_report

    with only_answers_on_stdout():
        path, table = write_report(runs, out)
    show(
        {"report": str(path), "table": table},
        as_json,
        lambda made: f"{made['table']}\n\nreport: {made['report']}",
    )


def say_what_is_idle(config: "TrainConfig", overrides: list[str]) -> None:
    """Tell the user of changes that make no difference to a run, and of parts that it does not train."""
    from shared.config import idle_overrides
    from shared.runlog import say
    from stage2_train.idle_fields import idle_fields, untrained_parts

    for line in (*idle_overrides(idle_fields(config), overrides), *untrained_parts(config)):
        say(f"note: {line}", not speaks())


def _text_of_run(folder: Path, done: Mapping[str, Any]) -> str:
    if done.get("already_finished"):
        return f"{folder}: finished before, nothing to do"
    return f"{folder}: {done['step']} steps in {done['seconds']:.0f} s"


def _text_of_prediction(answer: Mapping[str, Any]) -> str:
    """What was found but for the mask as numbers, which is in the files."""
    return text_of_mapping({name: value for name, value in answer.items() if name != "rle"})
