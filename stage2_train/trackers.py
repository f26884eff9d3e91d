"""The log of a run sent to experiment trackers besides TensorBoard, through Accelerate's own classes for them.

`metrics.jsonl` stays the record: a tracker gets the same numbers and is never read. A resumed run is another run of the
same name there, as neither service can take steps back. A service that cannot be reached at the start refuses the run;
one that fails later is left out, with one line on standard error, and the training goes on.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, WandBTracker

from shared.errors import DataError
from shared.runlog import say
from stage2_train.config import TRACKER_NAMES

PROJECT = "l2l"
"""Project (Weights & Biases) or experiment (MLflow) that runs are filed under."""

_OPEN: dict[str, Callable[[Path], GeneralTracker]] = {
    "wandb": lambda out: WandBTracker(PROJECT, name=out.name, dir=str(out)),
    "mlflow": lambda out: MLflowTracker(PROJECT, run_name=out.name),
}
assert tuple(_OPEN) == TRACKER_NAMES


def require_installed(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing, before anything is opened.

    Raises:
        DataError: The package is not installed; the message says how to get it.
    """
    for name in names:
        if find_spec(name) is None:
            raise DataError(f"runtime.trackers: {name} is not installed; pip install {name}")


class Trackers:
    """Some started trackers; the main process alone makes one.

    Args:
        trackers: Not started yet.
        settings: The run's config as nested mappings, shown beside the curves.

    Raises:
        DataError: A service that takes no run; the message holds what it said.
    """

    def __init__(self, trackers: Sequence[GeneralTracker], settings: Mapping[str, Any]) -> None:
        self._trackers = list(trackers)
        for tracker in self._trackers:
            try:
                tracker.start()
                tracker.store_init_configuration(flat(settings))
            except Exception as error:
                raise DataError(f"runtime.trackers: {tracker.name} takes no run: {error}") from error

    def log(self, step: int, kind: str, figures: Mapping[str, Any]) -> None:
        """Send the finite numbers of one record, each as `<kind>/<name>`."""
        values = {
            f"{kind}/{name}": float(value)
            for name, value in figures.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self._on_each(lambda tracker: tracker.log(values, step=step))

    def close(self) -> None:
        """End every run."""
        self._on_each(lambda tracker: tracker.finish())

    def _on_each(self, act: Callable[[GeneralTracker], object]) -> None:
        """Do something with every tracker; one that fails is not asked again."""
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:  # whatever a service and its network come up with
                self._trackers.remove(tracker)
                said = " ".join(str(error).split())
                say(f"{tracker.name} is left out from here on: {said}")


def open_trackers(
    names: Sequence[str], out: Path, settings: Mapping[str, Any], *, quiet: bool = False
) -> Trackers:
    """The trackers of `runtime.trackers`, started, each with a run named after the folder `out`.

    Args:
        names: Which.
        out: Folder of the run.
        settings: See `Trackers`.
        quiet: Keep them from telling how they do, unless the environment says otherwise.
    """
    require_installed(names)
    if quiet:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    return Trackers([_OPEN[name](out) for name in names], settings)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as `a.b.c: value`; what is no plain value becomes text."""
    values: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return values
