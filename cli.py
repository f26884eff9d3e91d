"""The command line, `l2l`: which command is which function.

Each stage has its commands in a file of its own, thin shells that import what they need inside the command.
Answers go to standard output, progress and messages to standard error. With `--json` a command prints exactly one JSON
object on standard output. Exit status: 0 done, 1 the answer is no (a failed check), 2 unusable input, or a file that
cannot be read or written (one line `error: ...`), 75 stopped in order by SIGTERM or SIGUSR1 (priors, a training, a
grid) or the first Ctrl-C (a training), 130 interrupted.
"""

import inspect
import io
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from shared.console import Json, recipe_of, show
from shared.data_commands import (
    data_check,
    data_import,
    data_init,
    data_leakage,
    data_pack,
    data_split,
    data_synth,
)
from shared.errors import DataError
from stage1_priors.commands import (
    fetch_priors,
    priors_inspect,
    priors_run,
    priors_score,
    priors_status,
    priors_verify,
    submit_priors,
)
from stage2_train.cluster_commands import fetch_ablate, fetch_train, submit_ablate, submit_train
from stage2_train.commands import (
    ablate,
    evaluate,
    export_labels_of,
    params,
    predict,
    report,
    train,
    weights_convert,
)

app = typer.Typer(
    help="Learning to Label: referring segmentation from few masks and a frozen multimodal model, in two stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def doctor(as_json: Json = False) -> None:
    """Say what is installed here, and what would not work and why."""
    from shared.doctor import examine, format_report

    report = examine()
    show(report, as_json, format_report)


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
        show(listed, as_json, _text_of_recipes)
        return
    holding = {stage: of for stage, of in stages.items() if name in of}
    if not holding:
        recipe_of({known: recipe for of in stages.values() for known, recipe in of.items()}, name)
    fields = {
        stage: {
            field.path: {"value": field.text, "meaning": field.meaning} for field in config_fields(of[name]())
        }
        for stage, of in holding.items()
    }
    show(fields, as_json, _text_of_fields)


def status(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|STORE|GRID...", help="Folders of stores, runs or grids, or of some of these."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Say what is done, running, failed and why, from files; of what waits Slurm is asked, where it can be.

    Of several, --json gives one object with the list `targets`.
    """
    from shared.cluster.overview import overview_of
    from shared.cluster.status import format_status

    found = [overview_of(target) for target in targets]
    if len(found) == 1:
        show(found[0], as_json, format_status)
    else:
        show({"targets": found}, as_json, lambda of: "\n\n".join(map(format_status, of["targets"])))


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


COMMANDS: dict[str, Callable[..., None]] = {
    "doctor": doctor,
    "recipes": recipes,
    "train": train,
    "eval": evaluate,
    "ablate": ablate,
    "status": status,
    "predict": predict,
    "export-labels": export_labels_of,
    "params": params,
    "report": report,
}
"""Commands of one word."""

GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "data": (
        "Make, import, check, pack and split data: the REFER layout, or photos and phrases of your own.",
        {
            "synth": data_synth,
            "init": data_init,
            "import": data_import,
            "check": data_check,
            "pack": data_pack,
            "leakage": data_leakage,
            "split": data_split,
        },
    ),
    "priors": (
        "Stage 1: ask the frozen model, and check, score and look at stores of priors.",
        {
            "run": priors_run,
            "status": priors_status,
            "verify": priors_verify,
            "score": priors_score,
            "inspect": priors_inspect,
        },
    ),
    "fetch": (
        "Fetch models named by repositories into the local Hugging Face cache; runs and jobs only look there.",
        {"priors": fetch_priors, "train": fetch_train, "ablate": fetch_ablate},
    ),
    "submit": (
        "Submit batch jobs to Slurm; without Slurm, run them here.",
        {"priors": submit_priors, "train": submit_train, "ablate": submit_ablate},
    ),
    "weights": ("Published checkpoints.", {"convert": weights_convert}),
}
"""Commands of two words, with what the first one stands for."""

for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
for _name, (_help, _commands) in GROUPS.items():
    _group = typer.Typer(help=_help, no_args_is_help=True)
    for _second, _command in _commands.items():
        _group.command(_second)(_command)
    app.add_typer(_group, name=_name)


def _print_any_text() -> None:
    """Let names that the terminal's encoding lacks, or that are no UTF-8, be printed with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _raised_in(error: BaseException) -> str:
    """Where in this project's code an error was raised or passed, for one that no function foresaw."""
    root = Path(__file__).resolve().parent
    own = [
        f" (at {path.relative_to(root)}, line {frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if (path := Path(frame.filename)).is_relative_to(root) and "site-packages" not in path.parts
    ]
    return own[-1] if own else ""


def main() -> None:
    """Run the command line; the console script `l2l`."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a command has one progress line, its own
    _print_any_text()
    try:
        app()
    except DataError as error:
        _refuse(str(error))
    except OSError as error:
        if not isinstance(error.filename, str | bytes):
            raise
        _refuse(f"{os.fsdecode(error.filename)}: {error.strerror or type(error).__name__}{_raised_in(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
