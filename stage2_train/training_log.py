"""The log of a run: `metrics.jsonl`, TensorBoard, and the trackers it names; only the first process writes."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

from accelerate import Accelerator

from shared.config import config_to_dict
from shared.runlog import RunLog
from shared.store.publish import disk_errors
from stage2_train.config import TrainConfig
from stage2_train.owner import RunOwner
from stage2_train.run_code import own_code
from stage2_train.trackers import open_trackers

WriteLine = Callable[[str, int, dict[str, float]], None]
"""(kind of record, step, figures) to one line of the log."""


@contextmanager
def training_log(
    config: TrainConfig, out: Path, owner: RunOwner, accelerator: Accelerator, first: int, *, quiet: bool
) -> Iterator[WriteLine]:
    """A function that writes one line.

    Args:
        config: The run.
        out: Its folder.
        owner: This start's claim on it.
        accelerator: The processes.
        first: Steps done before this start; lines of later ones are dropped.
        quiet: Keep trackers from telling how they do.

    Raises:
        DataError: A tracker takes no run, or, on writing, the disk is full.
    """
    if not accelerator.is_main_process:
        yield lambda kind, step, figures: None
        return
    runtime = config.runtime
    with owner.writing():
        log = RunLog(out, tensorboard=runtime.tensorboard, resume_step=first)
        if first:
            log.log(
                first,
                "resume",
                num_processes=accelerator.num_processes,
                torch=version("torch"),
                code=own_code()["sources"],
            )
    settings = config_to_dict(config)
    with log, closing(open_trackers(runtime.trackers, out, settings, quiet=quiet)) as trackers:

        def write(kind: str, step: int, figures: dict[str, float]) -> None:
            with disk_errors(out, "the run's log", "its last checkpoint is safe", "again with --resume"):
                log.log(step, kind, **figures)
            trackers.log(step, kind, figures)

        yield write
