"""The jobs of a training and of a grid."""

import shutil

import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.json_files import read_json, write_json
from stage2_train.ablate_grid import read_grid
from stage2_train.ablate_state import DONE, PART, State
from stage2_train.cluster_jobs import hub_models_of, plan_grid, plan_training
from stage2_train.evaluate import evaluate_run
from stage2_train.recipes import RECIPES
from tests.stage2_train.miniature import mini_config, write_data
from tests.stage2_train.test_ablate_grid import grid_file

GRID = """
reference = "a"
recipe = "supervised-embedded"
fractions = [0.25]
seeds = [1, 2]
set = ["data.root={root}/data"]
[methods.a]
[methods.b]
set = ["steps=40"]
"""


@pytest.fixture
def grid(mini_root, tmp_path):
    return read_grid(grid_file(tmp_path, GRID.format(root=mini_root)))


def test_a_training_goes_on_with_what_is_there(mini_root, tmp_path):
    out = tmp_path / "run"
    config = apply_overrides(mini_config(mini_root), ["runtime.workers=3"])
    work = plan_training(config, ["embedded", "--set", "a=b"], out, 2, 2)
    (job,) = work.jobs
    assert work.readers == 3
    assert job.command == ("train", "embedded", "--set", "a=b", "--out", str(out), "--resume")
    assert (job.num_nodes, job.num_processes, job.tasks, job.hub_cache) == (2, 2, (), "")
    assert work.here == (
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cli", *job.command),
    )
    assert work.folder == out / "jobs" and not out.exists()


def test_a_finished_run_is_not_submitted_and_another_one_in_its_folder_is_refused(
    mini_root, mini_run, tmp_path
):
    config = mini_config(mini_root, steps=2)
    for after in ((), ("7",)):
        work = plan_training(config, ["r"], mini_run, 1, 1, after=after)
        assert work.jobs == () and work.here == ()
    for change, message in (
        ("optim.lr=1", r"config\.json: belongs to another run \(optim\.lr is 0\.002 there, 1\.0 now\)"),
        (f"store={tmp_path / 'no.zarr'}", "no.zarr: no prior store here"),
    ):
        with pytest.raises(DataError, match=message):
            plan_training(apply_overrides(config, [change]), ["r"], mini_run, 1, 1, splits=["val"])


def test_scores_follow_a_training(mini_root, mini_run, tmp_path):
    """In one job, of the splits that a finished run has no scores of; a wrong one is found before the queue."""
    config, out = mini_config(mini_root, steps=2), tmp_path / "run"
    work = plan_training(config, ["r"], out, 2, 2, splits=["val", "testA", "val"])
    train, score = work.jobs
    splits, root = ("--split", "val", "--split", "testA"), ("--root", config.data.root)
    assert score.command == ("eval", str(out), *splits, *root)
    assert score.after_others and not train.after_others
    assert (score.num_nodes, score.num_processes, score.use_gpu, score.hub_cache) == (1, 0, True, "")
    assert work.here[1:] == (("-m", "cli", *score.command),)
    reading = apply_overrides(config, ["runtime.workers=3"])
    score = plan_training(reading, ["r"], out, 2, 2, splits=["val"]).jobs[1]
    assert score.command == ("eval", str(out), *splits[:2], *root, "--workers", "3")

    shutil.copytree(mini_run, out)
    evaluate_run(out, "val", batch=8, quiet=True)
    (score,) = plan_training(config, ["r"], out, 1, 1, splits=["val", "testA"]).jobs
    assert score.command == ("eval", str(out), *splits[2:], *root)
    assert plan_training(config, ["r"], out, 1, 1, splits=["val"]).jobs == ()
    for run in (tmp_path / "new", out):
        with pytest.raises(DataError, match="--split: .*no split 'validation'"):
            plan_training(config, ["r"], run, 1, 1, splits=["val", "validation"])


def test_batches_that_cannot_be_shared_out_are_found_before_the_queue(tmp_path):
    with pytest.raises(DataError, match="batch_labelled 16 cannot be shared out over 6"):
        plan_training(RECIPES["embedded"](), ["embedded"], tmp_path, 2, 3)
    odd = apply_overrides(RECIPES["embedded"](), ["batch_unlabelled=15"])
    with pytest.raises(DataError, match="batch_unlabelled 15 cannot be shared out over 2"):
        plan_training(odd, ["embedded"], tmp_path, 2, 1)
    for nodes, processes, name in ((0, 1, "--nodes"), (1, 0, "--processes")):
        with pytest.raises(DataError, match=f"{name} is 0"):
            plan_training(odd, ["embedded"], tmp_path, nodes, processes)


def test_so_are_missing_inputs_and_a_folder_of_another_run(mini_root, mini_run, tmp_path):
    for change, message in (
        ("data.root=/no/data", "/no/data"),
        (f"cache_root={tmp_path}", "no complete prior store"),
        ("segmentor.weights=embedded", "has shape .* --set segmentor"),
    ):
        with pytest.raises(DataError, match=message):
            plan_training(apply_overrides(mini_config(mini_root), [change]), ["r"], tmp_path / "run", 1, 1)
    other = tmp_path / "other"
    shutil.copytree(mini_run, other)
    (other / "done.json").unlink()
    with pytest.raises(DataError, match=r"config\.json: belongs to another run \(steps is 2 there, 6 now\)"):
        plan_training(mini_config(mini_root), ["r"], other, 1, 1)


def test_so_are_labels_that_have_changed_since_an_unfinished_run_began(mini_root, mini_run, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(mini_run, begun)
    (begun / "done.json").unlink()
    config = mini_config(mini_root, steps=2)
    assert [job.name for job in plan_training(config, ["r"], begun, 1, 1).jobs] == ["train"]
    split = read_json(begun / "split.json")
    write_json(begun / "split.json", {**split, "image_ids": split["image_ids"][1:]})
    with pytest.raises(
        DataError, match=r"split\.json: the data carry other labels .*other images are labelled"
    ):
        plan_training(config, ["r"], begun, 1, 1)


def test_a_store_may_be_on_its_way(mini_root, tmp_path):
    """Of a store that jobs are writing only what is there is looked at; all else is asked for as ever."""
    coming = tmp_path / "coming.zarr"
    config = apply_overrides(mini_config(mini_root), [f"store={coming}"])
    with pytest.raises(DataError, match="no prior store here"):
        plan_training(config, ["r"], tmp_path / "run", 1, 1)
    (job,) = plan_training(config, ["r"], tmp_path / "run", 1, 1, after=("7", "8")).jobs
    assert job.after == ("7", "8")
    shutil.copytree(next((mini_root / "stores").glob("*.zarr")), coming)
    next((coming / "done").iterdir()).unlink()
    with pytest.raises(DataError, match="shards are not finished"):
        plan_training(config, ["r"], tmp_path / "run", 1, 1)
    assert plan_training(config, ["r"], tmp_path / "run", 1, 1, after=("7",)).jobs
    write_data(tmp_path / "other", 17)
    other = apply_overrides(config, [f"data.root={tmp_path / 'other'}"])
    with pytest.raises(DataError, match="made for other annotations than"):
        plan_training(other, ["r"], tmp_path / "run", 1, 1, after=("7",))


def test_a_grid_may_wait_for_its_store_too(mini_root, tmp_path):
    text = GRID.format(root=mini_root).replace("supervised-embedded", "embedded")
    changes = [f"store={tmp_path / 'coming.zarr'}"]
    grid = read_grid(grid_file(tmp_path, text), changes)
    with pytest.raises(DataError, match="no prior store here"):
        plan_grid(grid, tmp_path / "out", 0, changes)
    coming = tmp_path / "coming.zarr"
    (job,) = plan_grid(grid, tmp_path / "out", 0, changes, coming, after=("7",)).jobs
    assert job.after == ("7",) and job.tasks == (0, 1, 2, 3)
    assert job.command == ("ablate", str(grid.path), "--set", *changes, "--out", str(tmp_path / "out"))


def test_one_store_of_several_may_be_on_its_way(mini_root, tmp_path, l2l):
    """The jobs of that one are waited for, and the file's own names are kept; the others must be there."""
    coming, there = tmp_path / "coming.zarr", next((mini_root / "stores").glob("*.zarr"))
    text = GRID.format(root=mini_root).replace("supervised-embedded", "embedded")
    text = text.replace('"steps=40"', f'"store={coming}"').replace(
        "[methods.a]", f'[methods.a]\nset = ["store={there}"]'
    )
    path = grid_file(tmp_path, text)
    grid, out = read_grid(path), tmp_path / "out"
    (job,) = plan_grid(grid, out, 0, (), coming, after=("7",)).jobs
    assert job.command == ("ablate", str(path), "--out", str(out))
    with pytest.raises(DataError, match=f"{coming}: no prior store here"):
        plan_grid(grid, out, 0, (), there, after=("7",))
    assert (
        "no prior store here" in l2l("submit", "ablate", path, "--after", coming, "--dry-run").err
    )  # no job fills it
    ran = l2l("submit", "ablate", path, "--after", tmp_path / "another.zarr", "--dry-run")
    assert ran.status == 2 and "methods.a names a store of its own" in ran.err


@pytest.fixture
def commit(mini_root, tmp_path, monkeypatch):
    """Commit of a tokenizer `some/words` in a cache of its own."""
    commit = "ab12" * 10
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--words" / "snapshots" / commit
    shutil.copytree(mini_root / "tokenizer", snapshot)
    (tmp_path / "models--some--words" / "refs").mkdir()
    (tmp_path / "models--some--words" / "refs" / "main").write_text(commit)
    return commit


def test_towers_named_by_repositories_are_held_at_their_commits(mini_root, tmp_path, commit):
    config = apply_overrides(mini_config(mini_root), ["segmentor.text.tokenizer=some/words"])
    (job,) = plan_training(config, ["r"], tmp_path / "run", 1, 1).jobs
    assert f"segmentor.text.tokenizer=some/words@{commit}" in job.command and job.hub_cache == str(tmp_path)
    absent = apply_overrides(config, ["segmentor.vision.weights=some/swin@v2"])
    with pytest.raises(DataError, match=r"segmentor\.vision\.weights: some/swin \(revision v2\) is neither"):
        plan_training(absent, ["r"], tmp_path / "run", 1, 1)


def test_so_are_those_that_all_runs_of_a_grid_share(grid, tmp_path, commit):
    words = "segmentor.text.tokenizer=some/words"
    text, out = grid.path.read_text(), tmp_path / "out"
    for shared, changes in ((text.replace('/data"]', f'/data", "{words}"]'), []), (text, [words])):
        work = plan_grid(read_grid(grid_file(tmp_path, shared), changes), out, 0, changes)
        (job,) = work.jobs
        options = [part for change in (*changes, f"{words}@{commit}") for part in ("--set", change)]
        assert job.command == ("ablate", str(grid.path), *options, "--out", str(out))
        assert work.here == (("-m", "cli", *job.command),) and not any(
            "some/words" in note or "tokenizer" in note for note in work.notes
        )
        assert job.hub_cache == str(tmp_path)

    own = read_grid(grid_file(tmp_path, text.replace('"steps=40"', f'"steps=40", "{words}"')))
    work = plan_grid(own, out, 0)
    (job,) = work.jobs
    assert "--set" not in job.command and job.hub_cache == str(tmp_path)
    steps, tokenizer = work.notes
    assert steps.startswith("WARNING: the arms differ in steps")
    assert tokenizer == "segmentor.text.tokenizer: not the same in all runs, so not held at a commit"


@pytest.mark.parametrize(("asked", "width"), [(0, 4), (3, 3), (9, 4)])
def test_a_grid_is_shared_out(grid, tmp_path, asked, width):
    (job,) = plan_grid(grid, tmp_path / "out", asked).jobs
    assert job.tasks == tuple(range(width)) and job.per_task == f'--only "$task/{width}"'
    assert job.command == ("ablate", str(grid.path), "--out", str(tmp_path / "out"))


def test_the_readers_of_a_grid_are_those_of_its_hungriest_run(mini_root, tmp_path):
    text = GRID.format(root=mini_root)
    assert plan_grid(read_grid(grid_file(tmp_path, text)), tmp_path / "out", 0).readers == 0
    changed = text.replace('/data"]', '/data", "runtime.workers=5"]')
    assert changed != text
    assert plan_grid(read_grid(grid_file(tmp_path, changed)), tmp_path / "out", 0).readers == 5


def test_only_tasks_with_runs_that_are_not_done_are_submitted(grid, tmp_path, monkeypatch):
    out, done = tmp_path / "out", {0, 1, 2}

    def state_of(cell, *rest):
        return State(state=DONE if grid.cells.index(cell) in done else PART)

    monkeypatch.setattr("stage2_train.ablate_state.state_of", state_of)
    assert plan_grid(grid, out, 0).jobs[0].tasks == (3,)
    assert plan_grid(grid, out, 2).jobs[0].tasks == (1,)
    done.add(3)
    work = plan_grid(grid, out, 0)
    assert work.jobs == () and work.here == ()


def test_the_models_of_a_grid_must_be_there(grid, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    named = grid.path.read_text().replace('/data"]', '/data", "segmentor.text.tokenizer=some/words"]')
    grid = read_grid(grid_file(tmp_path, named))
    assert [(model.name, model.revision) for model in hub_models_of(grid)] == [("some/words", "main")]
    with pytest.raises(DataError, match="some/words"):
        plan_grid(grid, tmp_path / "out", 0)


def test_a_negative_number_of_tasks_is_refused(grid, tmp_path):
    with pytest.raises(DataError, match="--tasks is -1"):
        plan_grid(grid, tmp_path / "out", -1)


def test_a_grid_that_cannot_be_scored_is_not_submitted(grid, tmp_path):
    text = grid.path.read_text().replace("seeds =", 'splits = ["validation"]\nseeds =')
    with pytest.raises(DataError, match="no split 'validation'"):
        plan_grid(read_grid(grid_file(tmp_path, text)), tmp_path / "out", 0)
