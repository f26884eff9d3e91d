"""The jobs of a training and of a grid."""

import pytest

from shared.cluster.script import STOPPED
from shared.config import apply_overrides
from shared.errors import DataError
from stage2_train.ablate_grid import read_grid
from stage2_train.cluster_jobs import plan_grid, plan_training
from stage2_train.recipes import RECIPES
from stage2_train.train import RESUBMIT_EXIT_CODE
from tests.stage2_train.test_ablate_grid import grid_file

GRID = """
reference = "a"
recipe = "supervised-embedded"
fractions = [0.05]
seeds = [1, 2]
[methods.a]
[methods.b]
"""


def test_a_stopped_run_has_the_status_that_scripts_queue_again():
    assert STOPPED == RESUBMIT_EXIT_CODE


def test_a_training_goes_on_with_what_is_there(tmp_path):
    out, config = tmp_path / "run", RECIPES["embedded"]()
    work = plan_training(config, ["embedded", "--set", "a=b"], out, 2, 4)
    (job,) = work.jobs
    assert job.command == ("train", "embedded", "--set", "a=b", "--out", str(out), "--resume")
    assert (job.num_nodes, job.num_processes, job.tasks) == (2, 4, ())
    assert work.here == (
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "-m", "cli", *job.command),
    )
    assert work.folder == out / "jobs" and not out.exists()


def test_a_finished_run_is_not_submitted(tmp_path):
    (tmp_path / "done.json").write_text("{}")
    work = plan_training(RECIPES["embedded"](), ["embedded"], tmp_path, 1, 1)
    assert work.jobs == () and work.here == ()


def test_batches_that_cannot_be_shared_out_are_found_before_the_queue(tmp_path):
    with pytest.raises(DataError, match="batch_labelled 16 cannot be shared out over 6"):
        plan_training(RECIPES["embedded"](), ["embedded"], tmp_path, 2, 3)
    odd = apply_overrides(RECIPES["embedded"](), ["batch_unlabelled=15"])
    with pytest.raises(DataError, match="batch_unlabelled 15 cannot be shared out over 2"):
        plan_training(odd, ["embedded"], tmp_path, 2, 1)
    for nodes, processes, name in ((0, 1, "--nodes"), (1, 0, "--processes")):
        with pytest.raises(DataError, match=f"{name} is 0"):
            plan_training(odd, ["embedded"], tmp_path, nodes, processes)


@pytest.mark.parametrize(("asked", "width"), [(0, 4), (3, 3), (9, 4)])
def test_a_grid_is_shared_out(tmp_path, asked, width):
    grid = read_grid(grid_file(tmp_path, GRID))
    (job,) = plan_grid(grid, tmp_path / "out", asked).jobs
    assert job.tasks == tuple(range(width)) and job.per_task == f'--only "$task/{width}"'
    assert job.command == ("ablate", str(grid.path), "--out", str(tmp_path / "out"))


def test_a_negative_number_of_tasks_is_refused(tmp_path):
    with pytest.raises(DataError, match="--tasks is -1"):
        plan_grid(read_grid(grid_file(tmp_path, GRID)), tmp_path / "out", -1)
