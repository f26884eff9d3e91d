"""What is said of a plan's images before an engine starts."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from shared.config import apply_overrides
from shared.errors import DataError
from shared.image_pack_build import build_pack
from shared.refer_layout import IMAGE_FOLDERS
from stage1_priors.cluster_jobs import plan_work
from stage1_priors.config import ImportConfig
from stage1_priors.dry_run import describe_plan
from stage1_priors.job import make_job
from stage1_priors.run import run_priors
from stage1_priors.workers import run_workers
from tests.stage1_priors.fake_engine import FakeEngine


@pytest.fixture
def own(config, refshapes_root, tmp_path):
    """A copy of the data whose files may be taken away."""
    shutil.copytree(refshapes_root, tmp_path / "data")
    return apply_overrides(config, [f"data.root={tmp_path / 'data'}", "engine.kv_cache_gb=1"])


def take_away(config, num):
    """Delete the images of the first pairs of the plan; returns how many pairs lost theirs."""
    job = make_job(config)
    names = list(dict.fromkeys(sample.file_name for sample in job.plan.samples))[:num]
    for name in names:
        job.dataset.image_path(name).unlink()
    return sum(sample.file_name in names for sample in job.plan.samples)


@pytest.mark.parametrize("image_hash", ["content", "size"])
def test_too_many_missing_images_stop_a_run_before_its_engine_starts(own, image_hash):
    own = apply_overrides(own, [f"image_hash={image_hash}"])
    samples = make_job(own).plan.samples
    num, engine = take_away(own, 40), FakeEngine()
    told = (
        f"{num} of {len(samples)} pairs are of images that are missing or cannot be read; the first is "
        rf"{samples[0].sample_id}: .*data: image {samples[0].file_name} is in none of images.*\. error_ceiling is 0.05"
    )
    with pytest.raises(DataError, match=told):
        run_priors(own, engine_factory=engine.factory, quiet=True)
    with pytest.raises(DataError, match=told):
        run_workers(own, 2, ["embedded"], quiet=True)
    with pytest.raises(DataError, match=told):
        plan_work(own, ["embedded"], 2)
    plan = describe_plan(own)
    assert plan["problem"].startswith(f"{num} of {len(samples)} pairs are of images") and not plan["exists"]
    assert plan["notes"] == [] and not engine.num_started
    assert describe_plan(apply_overrides(own, ["error_ceiling=1"]))["problem"] is None


def test_a_few_missing_images_and_those_of_a_trial_are_a_note(own, capsys):
    num, engine = take_away(own, 3), FakeEngine()
    plan = describe_plan(own)
    (note,) = plan["notes"]
    assert plan["problem"] is None and note.startswith(f"{num} of {plan['pairs']} pairs are of images that")
    assert note.endswith("They get no prior") and plan_work(own, ["embedded"], 2).notes[0] == note
    trial = apply_overrides(own, ["limit=8"])
    path = run_priors(trial, engine_factory=engine.factory)
    assert "note: 8 of 8 pairs are of images that" in capsys.readouterr().err and engine.num_started == 1
    run_priors(own, engine_factory=engine.factory)
    assert f"note: {note}\n" in capsys.readouterr().err
    assert run_priors(trial, engine_factory=engine.factory) == path
    assert "note:" not in capsys.readouterr().err and describe_plan(trial)["notes"] == []


def test_a_photo_replaced_beside_a_pack_is_named_even_if_nothing_is_to_do(own, capsys):
    job = make_job(own)
    name = job.plan.samples[5].file_name
    build_pack(job.dataset.root, [sample.file_name for sample in job.plan.samples], IMAGE_FOLDERS, quiet=True)
    path = run_priors(own, engine_factory=FakeEngine().factory)
    assert "note:" not in capsys.readouterr().err
    Image.new("RGB", (job.plan.samples[5].width, job.plan.samples[5].height)).save(
        job.dataset.image_path(name)
    )
    told = rf"1 images are of another size than in .*images.h5, which is read, the first is {name}; run `l2l data pack`"
    for start in (
        lambda: run_priors(own, engine_factory=FakeEngine().factory),
        lambda: run_workers(own, 2, ["embedded"]),
    ):
        assert start() == path and re.search(told, capsys.readouterr().err)
    assert re.match(told, describe_plan(own)["notes"][0]) and re.match(told, plan_work(own, [], 2).notes[0])
    build_pack(job.dataset.root, [], IMAGE_FOLDERS, quiet=True)
    assert describe_plan(own)["notes"] == [] and describe_plan(own)["store"] != str(path)


LOOKS = {
    "a run": lambda config, quiet: run_priors(config, engine_factory=FakeEngine().factory, quiet=quiet),
    "a dry run": lambda config, quiet: describe_plan(config, quiet=quiet),
    "a submission": lambda config, quiet: plan_work(config, ["embedded"], 2, quiet=quiet),
    "masks from elsewhere": lambda config, quiet: run_priors(
        ImportConfig(
            data=config.data,
            source=config.cache_root,
            splits=("val",),
            cache_root=config.cache_root,
            missing_ceiling=1,
        ),
        quiet=quiet,
    ),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("quiet", [False, True])
def test_the_first_look_at_the_images_shows_how_far_it_is(own, capsys, look, quiet):
    """It takes an hour for a large set on a slow disk."""
    sample = make_job(apply_overrides(own, [f"cache_root={own.cache_root}/other"])).plan.samples[0]
    (Path(own.cache_root) / f"{sample.sample_id}.png").parent.mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(Path(own.cache_root) / f"{sample.sample_id}.png")
    LOOKS[look](own, quiet)
    assert ("hashing: " in capsys.readouterr().err) is not quiet
