"""What a run is started from: a recipe, or the settings of a run that is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.config import apply_overrides
from shared.errors import DataError, unknown_recipe
from shared.json_files import read_json
from stage2_train.config import TrainConfig
from stage2_train.recipes import RECIPES
from stage2_train.run_files import read_run_config, with_own_store


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run is started from."""

    config: TrainConfig
    """Its settings."""
    recipe: str
    """Name of the recipe, for the record."""
    overrides: tuple[str, ...]
    """All changes to it, for the record."""
    run: Path | None
    """The run whose settings these are; None of a recipe."""


def start_of(named: str | Path, overrides: Sequence[str] = ()) -> Start:
    """The settings of a recipe or of a run, changed.

    A run's are those that it recorded, whatever has become of its recipe, and it keeps to the store that it read.

    Args:
        named: Name of a recipe, or a run's folder or its `config.json`.
        overrides: Changes, as `--set` takes them.

    Raises:
        DataError: Neither, settings that this code does not know, or a change that is none.
    """
    if named in RECIPES:
        name = str(named)
        return Start(
            config=apply_overrides(RECIPES[name](), overrides),
            recipe=name,
            overrides=tuple(overrides),
            run=None,
        )
    path = Path(named)
    run = path.parent if path.name == "config.json" else path
    if not (run / "config.json").is_file():
        if isinstance(named, Path) or run.exists() or len(path.parts) > 1:
            raise DataError(f"{named}: neither a recipe nor a run's folder: there is no config.json")
        raise DataError(unknown_recipe(named, RECIPES))
    recorded, config = read_json(run / "config.json"), read_run_config(run)
    changes = [str(one) for one in recorded.get("overrides") or []]
    own = with_own_store(run, config)
    if own.store != config.store:
        changes.append(f"store={own.store}")
    return Start(
        config=apply_overrides(own, overrides),
        recipe=str(recorded.get("recipe") or ""),
        overrides=(*changes, *overrides),
        run=run,
    )


def start_in(
    named: str | None, overrides: Sequence[str], out: Path | None, *, resume: bool
) -> tuple[Start, Path]:
    """What a run is started from, and its folder.

    Args:
        named: As for `start_of`; None goes on with the run in `out`.
        overrides: Changes, as `--set` takes them.
        out: Folder of the run; None is `runs/<recipe>`, or the run that is named, if it is gone on with.
        resume: Whether a run that is there may be gone on with.

    Raises:
        DataError: As `start_of`; nothing to start from, or no folder for a new run of another one's settings.
    """
    if named is None:
        if not resume or out is None:
            raise DataError("name a RECIPE, or a run to go on with by --resume --out RUN")
        return start_of(out, overrides), out
    start = start_of(named, overrides)
    if out is None and start.run is None:
        return start, Path("runs") / named
    if out is None and not resume:
        raise DataError(
            f"{named} is a run: name a folder for a new one of its settings by --out, or go on by --resume"
        )
    folder = out or start.run
    assert folder is not None
    return start, folder
