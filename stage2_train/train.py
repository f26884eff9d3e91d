"""Trains one run: refuses what cannot be trained, claims the folder, and hands over to `training_run`.

One process, or several started by `torchrun`; batch sizes in the config are global, so the number of processes changes
speed, and two things more: each process draws dropout and stochastic depth for itself, and batch norms normalise over
its own share of a micro-batch on CPUs (on GPUs over all shares). A run folder belongs to one configuration; an
interrupted run goes on from its newest checkpoint and, on a CPU, ends with the same bits as one that was never
interrupted. One that failed before it logged a step leaves no `config.json`: its folder is free for other settings.
Why a start failed stands in `failed.json` until the next one. SIGTERM, SIGUSR1 and the first Ctrl-C write a checkpoint
at the current step and end the process with `STOPPED`. A later start on the same folder ends an earlier one
(`owner.py`).
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from shared.errors import DataError, one_line
from shared.grid_folders import FAILED_FILE, require_no_grid
from shared.json_files import read_json, write_json
from shared.runlog import METRICS_FILE
from shared.seeding import seed_of
from shared.store.publish import disk_errors
from stage2_train.checkpoint import list_checkpoints, load_state
from stage2_train.config import TrainConfig
from stage2_train.inputs import open_inputs, say_lost_text, say_no_candidates
from stage2_train.owner import RunOwner
from stage2_train.processes import on_any_process, start_accelerator
from stage2_train.run_code import say_other_code
from stage2_train.run_files import has_ended, require_ended_as, require_resume, with_own_store
from stage2_train.run_identity import (
    note_moved_data,
    note_moved_weights,
    note_new_start,
    require_same_run,
    require_same_split,
    run_record,
    split_record,
    with_recorded_pins,
)
from stage2_train.segmentor import ReferringSegmentor, build_segmentor
from stage2_train.trackers import require_installed
from stage2_train.training_run import TrainingRun


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = True,
    recipe: str = "",
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a run to its end, or go on with it.

    Args:
        config: The run.
        out: Its folder.
        resume: Go on with an unfinished run; False refuses a folder that holds one. A finished run returns at once.
        recipe: Name of the recipe, for the record.
        overrides: The `--set` texts, for the record.
        quiet: No progress bar.

    Returns:
        The content of `done.json`, with `already_finished` set if nothing was left to do.

    Raises:
        DataError: Unusable inputs, a folder of another run, a collapsed run, or a later start took the folder over.
        SystemExit: Status `STOPPED` after a signal; a checkpoint has been written.
    """
    out = Path(out)
    require_no_grid(out)
    found = (out / "config.json").is_file()
    config = with_recorded_pins(out, config)
    if has_ended(out):
        require_ended_as(out, config)
        return {**read_json(out / "done.json"), "already_finished": True}
    require_installed(config.runtime.trackers)
    accelerator = start_accelerator()
    # The first may have written the folder meanwhile.
    found = on_any_process(accelerator, found and accelerator.is_main_process)
    if found:
        require_resume(out, resume=resume)
    elif list_checkpoints(out / "checkpoints"):
        raise DataError(
            f"{out}: holds checkpoints and no config.json, which would say of what run; choose another folder, or "
            f"delete {out / 'checkpoints'}"
        )
    config.require_shares(accelerator.num_processes)
    inputs = open_inputs(with_own_store(out, config), quiet=quiet or not accelerator.is_main_process)
    model = new_network(config)  # refuses weights before the folder is this run's
    data = inputs.dataset.fingerprint()
    record = run_record(config, recipe, overrides, inputs.store, data, accelerator.num_processes)
    split = split_record(config, inputs.split, inputs.dataset)
    if found:
        require_same_run(out, record)
        require_same_split(out, split)
    if accelerator.is_main_process:
        say_lost_text(config, inputs.split)
        say_no_candidates(config, inputs)
        if found and list_checkpoints(out / "checkpoints"):
            say_other_code(out)
    owner = _claim_folder(accelerator, out, config, record, split, data)
    run: TrainingRun | None = None
    try:
        run = TrainingRun(config, out, owner, accelerator, inputs, model, quiet)
        return run.to_the_end()
    except Exception as error:
        if accelerator.is_main_process:
            _record_failure(out, owner, error, run)
            _give_folder_back(out, owner)
        raise


def _claim_folder(
    accelerator: Accelerator,
    out: Path,
    config: TrainConfig,
    record: dict[str, Any],
    split: dict[str, Any],
    data: str,
) -> RunOwner:
    """Make the folder this start's, and note in it what the run is, unless that stands there already.

    Args:
        accelerator: The processes; the first one writes.
        out: The folder.
        config: The run.
        record: What `config.json` is to hold.
        split: What `split.json` is to hold.
        data: Fingerprint of the data set.

    Raises:
        DataError: The folder is of another run, somebody writes to it, or it cannot be written to.
    """
    with disk_errors(out, "a run's folder", "nothing was lost"):
        out.mkdir(parents=True, exist_ok=True)
    owner = RunOwner(out)
    if accelerator.is_main_process:
        owner.claim()
        with owner.writing():
            if (out / "config.json").is_file():
                require_same_run(out, record)  # another process may have been first
                note_moved_data(out, config.data.root, data)
                note_moved_weights(out, record)
                if not list_checkpoints(out / "checkpoints"):
                    note_new_start(out, record)
            else:
                write_json(out / "split.json", split)
                write_json(out / "config.json", record)
            (out / FAILED_FILE).unlink(missing_ok=True)  # of an earlier start
    accelerator.wait_for_everyone()
    return owner


def _record_failure(out: Path, owner: RunOwner, error: Exception, run: TrainingRun | None) -> None:
    """Note why a start failed, and how many steps were done; not in a folder that is another start's by now.

    Args:
        out: The folder; nothing is noted of a run that has ended.
        owner: This start's claim on it.
        error: What was raised.
        run: What raised it; None if it failed while it was being built.
    """
    if has_ended(out):
        return
    kept = list_checkpoints(out / "checkpoints")
    step = run.step if run is not None else load_state(kept[-1])["step"] if kept else 0
    with suppress(DataError), owner.writing():
        write_json(out / FAILED_FILE, {"reason": one_line(error), "step": step})


def _give_folder_back(out: Path, owner: RunOwner) -> None:
    """After a start that failed: a folder without a step has nothing to go on with or to look at; any may have it."""
    log = out / METRICS_FILE
    if not (list_checkpoints(out / "checkpoints") or log.is_file() and log.stat().st_size):
        with suppress(DataError), owner.writing():
            for name in ("config.json", "split.json"):
                (out / name).unlink(missing_ok=True)


def new_network(config: TrainConfig) -> ReferringSegmentor:
    """The network as a run starts with it."""
    torch.manual_seed(seed_of(config.seed, "weights"))
    return build_segmentor(config.segmentor)
