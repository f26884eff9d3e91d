"""The batch jobs of stage 2: a training over several nodes, and a grid of runs as an array."""

from collections.abc import Sequence
from pathlib import Path

from shared.cluster.script import ClusterJob
from shared.cluster.submit import Work, jobs_folder
from shared.errors import DataError
from stage2_train.ablate_grid import Grid
from stage2_train.config import TrainConfig


def plan_training(
    config: TrainConfig, arguments: Sequence[str], out: Path, num_nodes: int, num_processes: int
) -> Work:
    """The job of a training.

    Args:
        config: The recipe.
        arguments: Arguments of `train` that give it: its name and `--set` options.
        out: Folder of the run.
        num_nodes: Nodes.
        num_processes: Processes per node.

    Raises:
        DataError: Batches that cannot be shared out, found before anything is queued.
    """
    for name, value in (("--nodes", num_nodes), ("--processes", num_processes)):
        if value < 1:
            raise DataError(f"{name} is {value}, expected at least 1")
    config.require_shares(num_nodes * num_processes)
    command = ("train", *arguments, "--out", str(out), "--resume")
    job = ClusterJob(name="train", command=command, num_nodes=num_nodes, num_processes=num_processes)
    done = (out / "done.json").is_file()
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}")
    return Work(
        target=out,
        folder=jobs_folder(out),
        jobs=() if done else (job,),
        here=() if done else ((*launcher, "-m", "cli", *command),),
    )


def plan_grid(grid: Grid, out: Path, num_tasks: int) -> Work:
    """The jobs of a grid: task i of n trains and scores the cells with number = i (mod n).

    Args:
        grid: The grid.
        out: Its folder.
        num_tasks: Tasks (n); no more than there are cells, 0: one per cell.

    Raises:
        DataError: A number of tasks below 0.
    """
    if num_tasks < 0:
        raise DataError(f"--tasks is {num_tasks}, expected at least 0")
    width = min(num_tasks or len(grid.cells), len(grid.cells))
    command = ("ablate", str(grid.path), "--out", str(out))
    job = ClusterJob(
        name="ablate", command=command, per_task=f'--only "$task/{width}"', tasks=tuple(range(width))
    )
    return Work(target=out, folder=jobs_folder(out), jobs=(job,), here=(("-m", "cli", *command),))
