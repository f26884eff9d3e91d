"""Which workers are submitted for a store."""

import numpy as np
import pytest

from shared.errors import DataError
from shared.store.find import find_stores
from stage1_priors.cluster_jobs import plan_work
from stage1_priors.config import ImportConfig
from stage1_priors.run import run_priors
from tests.stage1_priors.fake_engine import FakeEngine

RECIPE = ["embedded", "--set", "a=b"]


def test_every_shard_has_one_worker_and_the_check_comes_after(config):
    work = plan_work(config, RECIPE, 64)
    priors, verify = work.jobs
    assert priors.tasks == (0, 1) and priors.command == ("priors", "run", *RECIPE)
    assert priors.per_task == '--worker "$task" --num-workers 2' and priors.use_gpu
    assert verify.command == ("priors", "verify", str(work.target), "--complete")
    assert verify.after_others and not verify.use_gpu and not verify.tasks
    assert work.folder == work.target.with_suffix(".jobs")
    assert not find_stores(config.cache_root, dataset="refshapes", split_by="unc")


def test_only_workers_with_missing_shards_are_submitted(config):
    run_priors(config, engine_factory=FakeEngine().factory, worker=1, num_workers=2, quiet=True)
    assert plan_work(config, RECIPE, 2).jobs[0].tasks == (0,)
    narrow = plan_work(config, RECIPE, 1).jobs[0]
    assert narrow.tasks == (0,) and narrow.per_task.endswith("--num-workers 1")
    run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    done = plan_work(config, RECIPE, 2)
    assert done.jobs == () and done.here == ()


def test_without_slurm_it_is_the_same_work(config):
    work = plan_work(config, RECIPE, 4)
    assert work.here[0] == ("-m", "cli", "priors", "run", *RECIPE, "--workers", "auto")
    assert work.here[1] == ("-m", "cli", *work.jobs[1].command)


def test_masks_from_elsewhere_need_no_gpu(config, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    np.save(masks / "refshapes.unc.0.npy", np.zeros((4, 4), np.float32))
    imported = ImportConfig(
        data=config.data, source=str(masks), splits=config.splits, cache_root=config.cache_root
    )
    assert not plan_work(imported, RECIPE, 1).jobs[0].use_gpu


def test_no_worker_is_refused(config):
    with pytest.raises(DataError, match="--tasks is 0"):
        plan_work(config, RECIPE, 0)
