"""Experiment trackers beside `metrics.jsonl` and TensorBoard, through Accelerate: Weights & Biases or MLflow.

A tracker is told what the log is told, from the first process alone, under names such as `train/loss`. Nothing is read
back from it, and a run does not depend on it.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from shared.config import config_to_dict
from shared.errors import DataError
from shared.seeding import seed_of
from stage2_train.config import TrainConfig

PROJECT = "l2l"
"""Project (W&B) or experiment (MLflow) that runs are filed under."""


def require_installed(tracker: str) -> None:
    """Refuse a tracker whose package is missing; "" is none.

    Raises:
        DataError: It is not installed; says how to install it.
    """
    if tracker and importlib.util.find_spec(tracker) is None:
        raise DataError(f"runtime.tracker is {tracker!r}, which is not installed: pip install {tracker}")


@contextmanager
def tracked(accelerator: Accelerator, config: TrainConfig, out: Path) -> Iterator[Any]:
    """A function `(step, kind, figures)` that tells the tracker of `config`, open for the length of the block.

    A resumed run goes on in the tracker's own record where the tracker can do that (W&B).
    """
    if not config.runtime.tracker:
        yield lambda step, kind, figures: None
        return
    run_id = f"{seed_of(str(out.resolve())):x}"
    options = {
        "wandb": {"name": out.name, "dir": str(out), "id": run_id, "resume": "allow"},
        "mlflow": {"run_name": out.name},
    }
    accelerator.init_trackers(PROJECT, config=_flat(config_to_dict(config)), init_kwargs=options)

    def tell(step: int, kind: str, figures: Mapping[str, Any]) -> None:
        numbers = {
            f"{kind}/{name}": value for name, value in figures.items() if isinstance(value, int | float)
        }
        accelerator.log(numbers, step=step)

    try:
        yield tell
    finally:
        accelerator.end_training()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings as `a.b` names with plain values, which is what every tracker takes."""
    found: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, str | int | float | bool) else str(value)
    return found
