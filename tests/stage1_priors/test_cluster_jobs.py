"""Which workers are submitted for a store."""

import re

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.store.find import find_stores
from stage1_priors.cluster_jobs import plan_work
from stage1_priors.config import ImportConfig
from stage1_priors.run import run_priors
from tests.stage1_priors.fake_engine import FakeEngine, write_model_folder

RECIPE = ["embedded", "--set", "a=b"]


def test_every_shard_has_one_worker_and_the_check_comes_after(config):
    work = plan_work(config, RECIPE, 64)
    priors, verify = work.jobs
    assert priors.tasks == (0, 1)
    assert priors.command == ("priors", "run", *RECIPE, "--expect", str(work.target))
    assert priors.per_task == '--worker "$task" --num-workers 2 --shards 0-1' and priors.use_gpu
    assert verify.command == ("priors", "verify", str(work.target), "--complete")
    assert verify.after_others and not verify.use_gpu and not verify.tasks
    assert work.folder == work.target.with_suffix(".jobs")
    assert not find_stores(config.cache_root, dataset="refshapes", split_by="unc")


def test_missing_shards_alone_are_dealt_to_workers(config):
    run_priors(config, engine_factory=FakeEngine().factory, worker=1, num_workers=2, quiet=True)
    narrow = plan_work(config, RECIPE, 2).jobs[0]
    assert narrow.tasks == (0,) and narrow.per_task.endswith("--num-workers 1 --shards 0")
    run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    done = plan_work(config, RECIPE, 2)
    assert done.jobs == () and done.here == ()


def test_a_model_named_by_a_repository_is_held_at_its_commit(config, tmp_path, monkeypatch):
    commit = "ab12" * 10
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    named = apply_overrides(config, ["model.path=some/model", "model.revision=v1"])
    with pytest.raises(DataError, match=r"model\.path: some/model \(revision v1\) is neither"):
        plan_work(named, RECIPE, 1)
    write_model_folder(hub / "models--some--model" / "snapshots" / commit)
    (hub / "models--some--model" / "refs").mkdir()
    (hub / "models--some--model" / "refs" / "v1").write_text(commit)
    work = plan_work(named, RECIPE, 1)
    priors = work.jobs[0]
    pinned = ("--set", f"model.revision={commit}", "--expect", str(work.target))
    assert priors.command == ("priors", "run", *RECIPE, *pinned)
    assert priors.hub_cache == str(hub) and work.here[0][2:] == (*priors.command, "--workers", "auto")
    (hub / "models--some--model" / "refs" / "v1").write_text("0" * 40)  # the branch moves on
    assert plan_work(apply_overrides(named, [f"model.revision={commit}"]), RECIPE, 1).target == work.target
    assert plan_work(config, RECIPE, 1).jobs[0].hub_cache == ""


def test_without_slurm_it_is_the_same_work(config):
    work = plan_work(config, RECIPE, 4)
    assert work.here[0] == ("-m", "cli", *work.jobs[0].command, "--workers", "auto")
    assert work.here[1] == ("-m", "cli", *work.jobs[1].command)


def test_the_jobs_own_interpreter_names_the_store(config, tmp_path):
    """Packages of a container are others than those here, and a store is named by them."""
    program, own = tmp_path / "python", str(tmp_path / "priors" / "theirs.zarr")
    asked = tmp_path / "asked"
    program.write_text(f'#!/bin/sh\necho "$@" > {asked}\necho \'{{"store": "{own}"}}\'\n')
    program.chmod(0o755)
    work = plan_work(config, RECIPE, 64, ["env", "A=1", str(program)])
    assert asked.read_text().split() == ["-m", "cli", "priors", "run", *RECIPE, "--dry-run", "--json"]
    assert str(work.target) == own and work.jobs[0].tasks == (0, 1)
    assert work.jobs[0].command[-2:] == ("--expect", own) and work.jobs[1].command[2] == own
    program.write_text("#!/bin/sh\necho 'no such image' >&2\nexit 255\n")
    with pytest.raises(DataError, match="does not say which store it would fill: no such image"):
        plan_work(config, RECIPE, 64, [str(program)])
    with pytest.raises(DataError, match="absent .*: No such file"):
        plan_work(config, RECIPE, 64, [str(tmp_path / "absent")])


def test_a_worker_does_not_begin_another_store_than_was_planned(config):
    planned = plan_work(config, RECIPE, 1).target
    other = planned.with_name("other.zarr")
    with pytest.raises(
        DataError, match=r"other.zarr was planned, and this process would write .*transformers \d"
    ):
        run_priors(config, engine_factory=FakeEngine().factory, expected=other, quiet=True)
    assert not planned.exists() and not other.exists()
    assert run_priors(config, engine_factory=FakeEngine().factory, expected=planned, quiet=True) == planned


def test_masks_from_elsewhere_need_no_gpu(config, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    np.save(masks / "refshapes.unc.0.npy", np.zeros((4, 4), np.float32))
    imported = ImportConfig(
        data=config.data, source=str(masks), splits=config.splits, cache_root=config.cache_root
    )
    assert not plan_work(imported, RECIPE, 1).jobs[0].use_gpu


def test_a_task_asks_for_the_gpus_of_its_worker(config):
    assert plan_work(config, RECIPE, 1).jobs[0].num_gpus == 1
    wide = apply_overrides(config, ["engine.gpus=4"])
    assert plan_work(wide, RECIPE, 1).jobs[0].num_gpus == 4
    assert plan_work(wide, RECIPE, 1).target == plan_work(config, RECIPE, 1).target


def test_a_new_store_is_said_to_be_one(config):
    """After an update of a package, who thinks to go on would begin anew."""
    run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    assert plan_work(config, RECIPE, 2).notes == ()
    other = plan_work(apply_overrides(config, ["splits=val"]), RECIPE, 2)
    news, *changed = other.notes
    assert re.fullmatch(rf"{other.target}: a new store, (\d+) of \1 pairs are known", news)
    assert any(line.startswith("splits") and "(from " in line for line in changed)


def test_no_worker_is_refused(config):
    with pytest.raises(DataError, match="--tasks is 0"):
        plan_work(config, RECIPE, 0)


def test_a_limit_needs_no_batch_jobs(config):
    with pytest.raises(
        DataError,
        match="limit is 30: so few pairs need no batch jobs; use `l2l priors run RECIPE --limit 30`",
    ):
        plan_work(apply_overrides(config, ["limit=30"]), RECIPE, 1)
