"""The batch jobs of stage 2: a training over several nodes with its scores, and a grid of runs as an array."""

from collections.abc import Sequence
from pathlib import Path

from shared.cluster.script import ClusterJob
from shared.cluster.submit import Work, jobs_folder
from shared.config import apply_overrides, as_options
from shared.datasets import load_dataset
from shared.errors import DataError
from shared.grid_folders import require_no_grid
from shared.hub import HubModel, cache_folder
from stage2_train.ablate_grid import Grid
from stage2_train.ablate_state import DONE, describe_grid, require_own_cells
from stage2_train.config import TrainConfig
from stage2_train.evaluate import is_scored
from stage2_train.hub_models import hub_models, pins
from stage2_train.inputs import open_inputs
from stage2_train.run_files import has_ended, require_ended_as, require_same_start, with_own_store
from stage2_train.run_identity import with_recorded_pins
from stage2_train.segmentor import require_fitting_weights
from stage2_train.split import scorable


def plan_training(
    config: TrainConfig,
    arguments: Sequence[str],
    out: Path,
    num_nodes: int,
    num_processes: int,
    after: tuple[str, ...] = (),
    splits: Sequence[str] = (),
) -> Work:
    """The job of a training, and one behind it that scores the finished run on one GPU.

    Args:
        config: The recipe.
        arguments: Arguments of `train` that give it: its name and `--set` options.
        out: Folder of the run.
        num_nodes: Nodes.
        num_processes: Processes per node.
        after: Ids of the jobs that write `config.store`, which need not be there yet then.
        splits: Splits to score; those that have their scores already are left out.

    Raises:
        DataError: Batches that cannot be shared out, inputs that are missing or unfit, a folder of another run, or
            a split that cannot be scored, found before anything is queued.
    """
    for name, value in (("--nodes", num_nodes), ("--processes", num_processes)):
        if value < 1:
            raise DataError(f"{name} is {value}, expected at least 1")
    config.require_shares(num_nodes * num_processes)
    require_no_grid(out)
    pinned = pins(config.segmentor)
    held = with_recorded_pins(out, apply_overrides(config, pinned))
    done = has_ended(out)
    if done:
        require_ended_as(out, held, store_comes=bool(after))
    else:
        _require_inputs(held, out, store_comes=bool(after))
    command = ("train", *arguments, *as_options(pinned), "--out", str(out), "--resume")
    train = ClusterJob(
        name="train",
        command=command,
        num_nodes=num_nodes,
        num_processes=num_processes,
        hub_cache=str(cache_folder()) if pinned else "",
        after=after,
    )
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}")
    jobs = [] if done else [train]
    here = [] if done else [(*launcher, "-m", "cli", *command)]
    if unscored := _unscored(config, out, splits):
        asked = [part for split in unscored for part in ("--split", split)]
        readers = ("--workers", str(config.runtime.workers)) if config.runtime.workers else ()
        scoring = ("eval", str(out), *asked, "--root", config.data.root, *readers)
        jobs.append(ClusterJob(name="eval", command=scoring, after_others=True))
        here.append(("-m", "cli", *scoring))
    return Work(
        target=out,
        folder=jobs_folder(out),
        jobs=tuple(jobs),
        here=tuple(here),
        readers=0 if done else config.runtime.workers,
    )


def _unscored(config: TrainConfig, out: Path, splits: Sequence[str]) -> list[str]:
    """Those of the splits that a run has yet to be scored on.

    Raises:
        DataError: A split that is not there, or without a mask.
    """
    if not splits:
        return []
    dataset = load_dataset(config.data)
    try:
        samples = {split: scorable(dataset, split) for split in splits}
    except DataError as error:
        raise DataError(f"--split: {error}") from error
    if not has_ended(out):
        return list(samples)
    return [split for split, own in samples.items() if not is_scored(out, split, dataset.masks_hash(own))]


def _require_inputs(config: TrainConfig, out: Path, *, store_comes: bool) -> None:
    """Open what the run reads, as it will do itself hours later; of a store that comes, the run itself sees more.

    Raises:
        DataError: Data, split, store or weights that are missing or unfit, or a folder that belongs to another run.
    """
    require_fitting_weights(config.segmentor)
    inputs = open_inputs(with_own_store(out, config), store_comes=store_comes)
    if (out / "config.json").is_file() and not store_comes:
        require_same_start(out, config, inputs)


def plan_grid(
    grid: Grid,
    out: Path,
    num_tasks: int,
    changes: Sequence[str] = (),
    coming: Path | None = None,
    after: tuple[str, ...] = (),
) -> Work:
    """The jobs of a grid: task i of n trains and scores the cells with number = i (mod n), and is submitted if one of
    them is not done.

    A tower or tokenizer named by a repository that all cells share is held at the commit that lies in the local cache.

    Args:
        grid: The grid.
        out: Its folder.
        num_tasks: Tasks (n); no more than there are cells, 0: one per cell.
        changes: Those that the grid was read with.
        coming: A store that its cells name; where jobs write it, it need not be there yet.
        after: Ids of those jobs.

    Raises:
        DataError: A number of tasks below 0, no store for the grid, a folder whose runs are others, or a model that is
            not in the cache.
    """
    if num_tasks < 0:
        raise DataError(f"--tasks is {num_tasks}, expected at least 0")
    width = min(num_tasks or len(grid.cells), len(grid.cells))
    plan = describe_grid(grid, out, coming=coming if after else None)
    states = plan["cells"]
    if not after:  # of a store that comes nobody knows the fingerprint
        require_own_cells(out, {name: cell["differs"] for name, cell in states.items()})
    todo = [number for number, cell in enumerate(grid.cells) if states[cell.name]["state"] != DONE]
    pinned, loose = _pins_of(grid)
    command = ("ablate", str(grid.path), *as_options([*changes, *pinned]), "--out", str(out))
    job = ClusterJob(
        name="ablate",
        command=command,
        per_task=f'--only "$task/{width}"',
        tasks=tuple(sorted({number % width for number in todo})),
        hub_cache=str(cache_folder()) if pinned or loose else "",
        after=after,
    )
    return Work(
        target=out,
        folder=jobs_folder(out),
        jobs=(job,) if todo else (),
        here=(("-m", "cli", *command),) if todo else (),
        notes=(
            *plan["notes"],
            *(f"{field}: not the same in all runs, so not held at a commit" for field in loose),
        ),
        readers=max((grid.cells[number].config.runtime.workers for number in todo), default=0),
    )


def _pins_of(grid: Grid) -> tuple[list[str], list[str]]:
    """Changes, as `--set`, that hold the models that all cells share at their commits; fields of those that are not.

    Raises:
        DataError: A model of some cell is not in the cache.
    """
    networks = dict.fromkeys(cell.config.segmentor for cell in grid.cells)
    of_each = [pins(network) for network in networks]
    found = dict.fromkeys(pin for of in of_each for pin in of)
    shared = [pin for pin in found if all(pin in of for of in of_each)]
    fields = dict.fromkeys(pin.partition("=")[0] for pin in found if pin not in shared)
    return shared, list(fields)


def hub_models_of(grid: Grid) -> list[HubModel]:
    """The models of a grid that are named by repositories, each once."""
    found = {model: None for cell in grid.cells for model in hub_models(cell.config.segmentor)}
    return list(found)
