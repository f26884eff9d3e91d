"""One cell of a grid, as a process of its own: train it or go on with it, then score it.

    python -m stage2_train.ablate_cell '{"run": ..., "recipe": ..., "changes": [...], "splits": {...}}'

The process holds a lock on the run's folder while it lives, so that a cell is never trained twice at once, and ends,
after writing a checkpoint, when the process that started it is gone. Where the file system has no locks, a second
process of the same cell takes the run over instead (`owner.py`). It reads data and a finished prior store; no frozen
model is loaded.

Exit status: 0 done, 2 unusable input (`error: ...` on standard error), `BUSY` another process has the cell,
`shared.stopping.STOPPED` interrupted; anything else is a crash.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from shared.config import apply_overrides
from shared.errors import DataError
from shared.locks import try_lock
from stage2_train.evaluate import evaluate_splits, is_scored
from stage2_train.recipes import RECIPES
from stage2_train.train import train

BUSY = 3
"""Exit status: the cell's lock is held by another process."""

LOCK_FILE = ".lock"
"""Name of the lock in a run's folder; the kernel frees it when its holder dies."""


def run_cell(spec: dict[str, Any]) -> None:
    """Train and score a cell as far as that has not been done.

    Args:
        spec: `run` (its folder), `recipe`, `changes` (as `--set`) and `splits` to score, with the hash of
            the masks of each.

    Raises:
        DataError: Unusable inputs, a folder of another run, or a collapsed run.
    """
    run = Path(spec["run"])
    config = apply_overrides(RECIPES[spec["recipe"]](), spec["changes"])
    train(config, run, resume=True, recipe=spec["recipe"], overrides=spec["changes"], quiet=True)
    if left := [split for split, masks in spec["splits"].items() if not is_scored(run, split, masks)]:
        evaluate_splits(run, left, root=config.data.root, workers=config.runtime.workers, quiet=True)


def hold_lock(run: Path) -> int | None:
    """Lock a run's folder for the life of this process; None if another process has it."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / LOCK_FILE
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if try_lock(handle, path):
        return handle
    os.close(handle)
    return None


def end_with_parent(poll_s: float = 1.0) -> None:
    """Send this process SIGTERM once the process that started it has died."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_s)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def main() -> None:
    """Run the cell that the only argument describes."""
    spec = json.loads(sys.argv[1])
    end_with_parent()
    if hold_lock(Path(spec["run"])) is None:
        sys.exit(BUSY)
    try:
        run_cell(spec)
    except DataError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
