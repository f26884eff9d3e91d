"""Runs as a user starts them; the killed one in a process of its own."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shared.cluster.status import status_of
from shared.config import apply_overrides
from shared.errors import DataError
from shared.grid_folders import FAILED_FILE
from shared.json_files import read_json
from shared.runlog import RunLog, read_records
from shared.stopping import STOPPED
from stage2_train.alarm import AlarmConfig, CollapseError
from stage2_train.checkpoint import list_checkpoints, load_object, load_state, load_weights
from stage2_train.config import L2lConfig, RuntimeConfig, TrainConfig
from stage2_train.dry_run import as_text, describe
from stage2_train.ema import EmaConfig
from stage2_train.hidden_masks import HiddenMasks
from stage2_train.method_facts import METHOD_FACTS
from stage2_train.methods import METHODS
from stage2_train.owner import RunOwner
from stage2_train.pseudo_labels import Pseudo
from stage2_train.recipes import RECIPES
from stage2_train.run_code import codes_of
from stage2_train.run_files import load_model, read_run_config, restore_method
from stage2_train.segmentor import build_segmentor
from stage2_train.segmentor_config import tiny_config
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config, plain_config, write_priors

ROOT = Path(__file__).parents[2]

RUNTIME = RuntimeConfig(checkpoint_every=2, log_every=1, prefetch=1, tensorboard=False)


def equal(a: Any, b: Any) -> bool:
    """Bit for bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def figures(run: Path) -> list[dict[str, Any]]:
    """The log without clocks and resume marks."""
    records = read_records(run / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records if r["kind"] != "resume"]


def assert_same_run(one: Path, two: Path) -> None:
    """The same end, and every logged figure."""
    assert_same_end(one, two)
    assert figures(one) == figures(two)


def assert_same_end(one: Path, two: Path) -> None:
    """Parameters, optimiser, policy with replay buffer, average and strikes."""
    a, b = (list_checkpoints(run / "checkpoints")[-1] for run in (one, two))
    assert a.name == b.name
    names = ["model"] + (["ema"] if (a / "ema.safetensors").exists() else [])
    for name in names:
        assert equal(load_weights(a, name), load_weights(b, name)), name
    for name in ("optimizer", "method"):
        assert equal(load_object(a, name), load_object(b, name)), name
    for name in ("strikes", "ema_updates", "step"):
        assert load_state(a)[name] == load_state(b)[name]
    assert equal(
        load_file(one / "model" / "model.safetensors"), load_file(two / "model" / "model.safetensors")
    )


def config_of(root: Path, **changes: Any) -> TrainConfig:
    return mini_config(root, **{"runtime": RUNTIME, "eval_every": 3, **changes})


def stopped_after(
    config: TrainConfig, out: Path, steps: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM
) -> None:
    """Run until a signal arrives during step number `steps`."""
    from stage2_train import training_run as module

    real, seen = module.train_step, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == steps:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_step", counted)
        with pytest.raises(SystemExit) as stopped:
            train(config, out, quiet=True)
    assert stopped.value.code == STOPPED == 75
    assert not (out / FAILED_FILE).exists(), "a stop is no failure"


@pytest.fixture(scope="module")
def whole_run(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with everything switched on."""
    out = tmp_path_factory.mktemp("whole") / "run"
    config = config_of(mini_root, ema=EmaConfig(decay=0.9))
    done = train(config, out, quiet=True, recipe="mini", overrides=["a=b"])
    assert done["step"] == 6 and "already_finished" not in done
    return out


def test_run_folder(whole_run: Path, mini_root: Path) -> None:
    record = json.loads((whole_run / "config.json").read_text())
    assert record["recipe"] == "mini" and record["overrides"] == ["a=b"] and record["method"] == "l2l"
    assert record["store"]["fingerprint"] == "f" * 16 and record["store"]["path"].endswith(".zarr")
    assert record["global_batch"] == {"labelled": 4, "unlabelled": 4} and record["versions"]["torch"]
    split = json.loads((whole_run / "split.json").read_text())
    assert (
        len(split["image_ids"]) == 4 and split["hash"] and split["fraction"] == 0.25 and split["num_refs"] > 0
    )
    assert read_run_config(whole_run) == config_of(mini_root, ema=EmaConfig(decay=0.9))
    assert [path.name for path in (whole_run / "checkpoints").iterdir()] == ["step_00000006"]
    done = json.loads((whole_run / "done.json").read_text())
    assert done["step"] == 6 and 0 <= done["metrics"]["oiou_original"] <= 1
    kinds = [(r["step"], r["kind"]) for r in read_records(whole_run / "metrics.jsonl")]
    assert kinds == [
        (1, "train"),
        (2, "train"),
        (3, "train"),
        (3, "val"),
        (4, "train"),
        (5, "train"),
        (6, "train"),
        (6, "val"),
    ]


def test_log_tells_what_was_taught(whole_run: Path) -> None:
    for record in read_records(whole_run / "metrics.jsonl"):
        if record["kind"] == "train":
            shares = {
                "coverage",
                "foreground",
                "prior_iou",
                "weak_iou",
                "fused_iou",
                "selected_accuracy",
                "tau_fg",
            }
            shares |= {"foreground_recall", "tau_bg", "lam", "lr_factor", "prior_rows", "text_survivors"}
            assert shares | {"loss", "labelled_loss", "unlabelled_loss", "reward"} <= record.keys()
            assert all(0 <= record[name] <= 1 for name in shares)
            assert record["disputed_prior_right"] <= record["disputed"]
            assert record["disputed_taught_right"] <= record["disputed_taught"] <= record["disputed"]


def test_exported_model_is_the_average(whole_run: Path) -> None:
    model = load_model(whole_run)
    average = load_weights(list_checkpoints(whole_run / "checkpoints")[-1], "ema")
    assert equal(dict(model.state_dict()), average) and not model.training


def test_a_finished_run_returns_at_once(whole_run: Path, mini_root: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole_run.rglob("*") if p.is_file()}
    done = train(config_of(mini_root, ema=EmaConfig(decay=0.9)), whole_run, quiet=True)
    assert done["already_finished"] and done["step"] == 6
    assert {p: p.stat().st_mtime_ns for p in whole_run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("steps", [1, 4])
def test_interrupted_run_ends_with_the_same_bits(
    whole_run: Path, mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    config, out = config_of(mini_root, ema=EmaConfig(decay=0.9)), tmp_path / "run"
    stopped_after(config, out, steps, monkeypatch)
    assert list_checkpoints(out / "checkpoints")[-1].name == f"step_{steps:08d}"
    assert not (out / "done.json").exists()
    with pytest.raises(DataError, match="holds an unfinished run"):
        train(config, out, resume=False, quiet=True)
    train(config, out, quiet=True)
    assert_same_run(whole_run, out)


def test_runtime_settings_change_nothing(whole_run: Path, mini_root: Path, tmp_path: Path) -> None:
    runtime = dataclasses.replace(
        RUNTIME, prefetch=0, cache_mib=0, checkpoint_every=0, log_with_hidden_masks=False
    )
    config, out = config_of(mini_root, ema=EmaConfig(decay=0.9), runtime=runtime), tmp_path / "run"
    train(config, out, quiet=True)
    a, b = (list_checkpoints(run / "checkpoints")[-1] for run in (whole_run, out))
    assert equal(load_weights(a, "model"), load_weights(b, "model"))
    assert equal(load_object(a, "method"), load_object(b, "method"))


KILLED = """
import sys
from pathlib import Path
from stage2_train.train import train
from tests.stage2_train.test_train import config_of
from stage2_train.config import EmaConfig
config = config_of(Path(sys.argv[1]), ema=EmaConfig(decay=0.9), accumulation=int(sys.argv[3]))
train(config, sys.argv[2], quiet=True)
"""


def test_a_stop_does_not_wait_for_a_validation(
    whole_run: Path, mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop at a step that is to be validated, it saves and goes; the log gets that validation afterwards."""
    config, out = config_of(mini_root, ema=EmaConfig(decay=0.9)), tmp_path / "run"
    stopped_after(config, out, 3, monkeypatch)
    assert [r["step"] for r in read_records(out / "metrics.jsonl") if r["kind"] == "val"] == []
    train(config, out, quiet=True)
    assert_same_run(whole_run, out)


def test_a_run_killed_in_its_validation_has_saved_before(
    whole_run: Path, mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stage2_train import training_run as module

    config, out = config_of(mini_root, ema=EmaConfig(decay=0.9)), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "score_samples", _interrupted)
        train(config, out, quiet=True)
    assert list_checkpoints(out / "checkpoints")[-1].name == "step_00000003"
    train(config, out, quiet=True)
    assert_same_run(whole_run, out)


@pytest.mark.parametrize("at", [3, 6])
def test_a_stop_in_a_validation_is_not_kept_waiting(
    whole_run: Path, mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """It goes before the next batch, also out of one that a resumed run makes up for; the end has the same bits."""
    from stage2_train import scoring

    runtime = dataclasses.replace(RUNTIME, eval_batch=2)
    config, out = config_of(mini_root, ema=EmaConfig(decay=0.9), runtime=runtime), tmp_path / "run"
    real, scored, before = scoring._score_batch, 0, 3 * (at == 6)  # batches of the validation at step 3

    def told_to_stop(*arguments: Any) -> Any:
        nonlocal scored
        scored += 1
        if scored > before:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_score_batch", told_to_stop)
        for start in (1, 2):
            with pytest.raises(SystemExit) as stopped:
                train(config, out, quiet=True)
            assert stopped.value.code == STOPPED and scored == before + start
            assert list_checkpoints(out / "checkpoints")[-1].name == f"step_{at:08d}"
    train(config, out, quiet=True)
    assert_same_run(whole_run, out)


def test_a_run_that_was_taken_over_in_its_validation_asks_for_no_other_start(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stage2_train import scoring

    real = scoring._score_batch

    def taken_over(*arguments: Any) -> Any:
        RunOwner(tmp_path / "run").claim()
        return real(*arguments)

    monkeypatch.setattr(scoring, "_score_batch", taken_over)
    config = config_of(mini_root, runtime=dataclasses.replace(RUNTIME, eval_batch=2))
    with pytest.raises(DataError, match="taken over by process"):
        train(config, tmp_path / "run", quiet=True)
    assert not [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "val"]
    assert not (tmp_path / "run" / FAILED_FILE).exists(), "the folder is the other's"


def test_ctrl_c_stops_a_training_in_order(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("stage2_train.training_run.say", lambda text, quiet: print(text))
    config = config_of(mini_root, eval_every=0)
    stopped_after(config, tmp_path / "run", 2, monkeypatch, signal.SIGINT)
    assert "stopped at step 2 of 6, checkpoint written; `train --resume` goes on" in capsys.readouterr().out
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step_00000002"
    assert signal.getsignal(signal.SIGINT) is before


def _interrupted(*arguments: Any, **options: Any) -> None:
    raise KeyboardInterrupt


WITH_READERS = """
import sys
from pathlib import Path
from shared.config import apply_overrides
from stage2_train.train import train
from tests.stage2_train.test_train import config_of
if __name__ == "__main__":
    config = apply_overrides(config_of(Path(sys.argv[1])), ["runtime.workers=1", "steps=2000", "eval_every=0"])
    train(config, sys.argv[2], quiet=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_told_to_every_process_leaves_a_checkpoint(
    mini_root: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Launchers, Slurm and a terminal's Ctrl-C signal the readers, too."""
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(WITH_READERS)
    environment = {**_one_thread_as_here(), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(mini_root), str(out)], env=environment, start_new_session=True
    )
    try:
        _wait_for(lambda: _logged(out) >= 3, process)
        os.killpg(process.pid, number)
        assert process.wait(timeout=120) == STOPPED
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert list_checkpoints(out / "checkpoints")
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        for _ in range(300):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_killed_run_ends_with_the_same_bits(
    whole_run: Path, mini_root: Path, tmp_path: Path, accumulation: int
) -> None:
    """SIGKILL at some step, at whatever point and in whichever micro-batch of it; then on to the end."""
    config = config_of(mini_root, ema=EmaConfig(decay=0.9), accumulation=accumulation)
    out, whole = tmp_path / "run", whole_run
    if accumulation > 1:
        whole = tmp_path / "whole"
        train(config, whole, quiet=True)
    last = 1 + int.from_bytes(os.urandom(1), "little") % 4
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(mini_root), str(out), str(accumulation)], env=_one_thread_as_here()
    )
    try:
        _wait_for(lambda: _logged(out) >= last, process)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL and not (out / "done.json").exists()
    train(config, out, quiet=True)
    assert_same_run(whole, out)


def _one_thread_as_here() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def _logged(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b'"train"') if path.exists() else 0


def _wait_for(condition: Any, process: subprocess.Popen, seconds: float = 300.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < limit, "the run did not start"
        time.sleep(0.01)


# --- refusals ----------------------------------------------------------------------------------------------------


def test_another_configuration_is_refused(whole_run: Path, mini_root: Path) -> None:
    config = config_of(mini_root, ema=EmaConfig(decay=0.9))
    with pytest.raises(DataError, match="optim.lr is 0.002 there, 0.5 now"):
        train(apply_overrides(config, ["optim.lr=0.5"]), whole_run, quiet=True)


def test_another_store_is_refused_on_resume(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared.refer import load_refer

    config, out = config_of(mini_root), tmp_path / "run"
    stopped_after(config, out, 1, monkeypatch)
    other = write_priors(
        tmp_path / "o.zarr", load_refer(mini_root / "data", "refshapes", "unc"), fingerprint="e" * 16
    )
    with pytest.raises(DataError, match="store is 'ffff.*', now|store is 'f{16}' there"):
        train(dataclasses.replace(config, store=str(other)), out, quiet=True)


def test_so_it_is_on_a_finished_run_and_one_that_is_not_there(
    whole_run: Path, mini_root: Path, tmp_path: Path
) -> None:
    """By what is in it: a copy of the run's own store is that store, and so is its own name once it is gone."""
    from shared.refer import load_refer

    config, own = config_of(mini_root, ema=EmaConfig(decay=0.9)), mini_root / "stores" / "refshapes.test.zarr"
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    other = write_priors(tmp_path / "o.zarr", dataset, fingerprint="e" * 16)
    copy = shutil.copytree(own, tmp_path / "copy.zarr")
    for store, message in (
        (other, "store is 'f{16}' there, 'e{16}' now"),
        (tmp_path / "no.zarr", "no.zarr: no"),
    ):
        with pytest.raises(DataError, match=message):
            train(dataclasses.replace(config, store=str(store)), whole_run, quiet=True)
    out = shutil.copytree(whole_run, tmp_path / "run")
    record = read_json(out / "config.json")
    record["store"]["path"] = str(tmp_path / "gone.zarr")
    (out / "config.json").write_text(json.dumps(record))
    for store in (own, copy, tmp_path / "gone.zarr"):
        assert train(dataclasses.replace(config, store=str(store)), out, quiet=True)["already_finished"]


def with_weights(root: Path, path: str) -> TrainConfig:
    base = config_of(root)
    return dataclasses.replace(base, segmentor=dataclasses.replace(base.segmentor, weights=path))


def with_tower(root: Path, name: str) -> TrainConfig:
    base = config_of(root)
    vision = dataclasses.replace(base.segmentor.vision, weights=name)
    return dataclasses.replace(base, segmentor=dataclasses.replace(base.segmentor, vision=vision))


def test_other_labels_are_refused(mini_root: Path, whole_run: Path, tmp_path: Path) -> None:
    """Finished or not: masks have been drawn since, and the run does not know them."""
    config = config_of(mini_root, ema=EmaConfig(decay=0.9))
    out = tmp_path / "run"
    shutil.copytree(whole_run, out)
    split = read_json(out / "split.json")
    (out / "split.json").write_text(json.dumps({**split, "num_refs": split["num_refs"] - 1}))
    for _ in range(2):
        with pytest.raises(DataError, match="split.json: the data carry other labels .*num_refs is"):
            train(config, out, quiet=True)
        (out / "done.json").unlink(missing_ok=True)
    assert not (out / FAILED_FILE).exists(), "a start that is refused leaves nothing"


def test_wrong_inputs_leave_no_folder(mini_root: Path, tmp_path: Path) -> None:
    for config, message in (
        (config_of(mini_root, cache_root=str(tmp_path)), "no complete prior store"),
        (config_of(mini_root, fraction=1.0), "every train image is labelled"),
        (config_of(mini_root, val_split="dev"), "val_split 'dev'"),
        (config_of(mini_root, store=str(tmp_path / "no.zarr")), "no.zarr"),
        (config_of(mini_root, fraction=0.001), "no image at all"),
        (with_weights(mini_root, "no.safetensors"), "no.safetensors: no such weights file"),
        (with_tower(mini_root, "owner/swin"), "vision.weights: owner/swin"),
    ):
        with pytest.raises(DataError, match=message):
            train(config, tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


def test_dry_run_describes_and_writes_nothing(mini_root: Path, tmp_path: Path) -> None:
    """For a person what matters, for a program all of it."""
    plan = describe(config_of(mini_root))
    text = as_text(plan)
    assert "steps: 6 of 4 labelled + 4 unlabelled samples" in text and "refshapes.test.zarr (ffff" in text
    assert "labelled: 25% of 16 train images (split_seed 0): 4 images, " in text
    assert "epochs (passes" in text and ", sesm " in text and "policy: actor 4,738, critic 4,801" in text
    assert len(text.splitlines()) < 20 and plan["config"]["optim"]["lr"] == 2e-3
    assert not list(tmp_path.iterdir())
    assert "segmentor.vision.weights: none: it starts at random" in text
    lost = as_text(describe(with_tower(mini_root, "owner/swin")))
    assert "segmentor.vision.weights: NOT FOUND: owner/swin" in lost
    plain = as_text(describe(plain_config(mini_root, "supervised")))
    assert "prior store: none is read" in plain and "unlabelled: not read" in plain and "actor" not in plain
    assert "epochs" not in plain
    fixed = dataclasses.replace(config_of(mini_root), l2l=L2lConfig(use_rple=False, band_px=0))
    assert "actor" not in describe(fixed)["parameters"] and "critic" not in describe(fixed)["parameters"]
    shipped = dataclasses.replace(tiny_config(), weight_parts=("text", "fusion"))
    text = as_text(describe(plain_config(mini_root, "supervised", segmentor=shipped)))
    assert "segmentor.vision.weights: none: it starts at random" in text
    assert "segmentor.text.weights: none: it" not in text
    wide = dataclasses.replace(shipped, text=dataclasses.replace(shipped.text, hidden=64))
    with pytest.raises(DataError, match=r"text\.\S+ has shape .* --set segmentor.weights=none"):
        describe(plain_config(mini_root, "supervised", segmentor=wide))


def test_dry_run_says_what_is_not_as_the_recipe_has_it(mini_root: Path) -> None:
    changes = [f"data.root={mini_root / 'data'}", f"cache_root={mini_root / 'stores'}", "fraction=0.25"]
    config = apply_overrides(RECIPES["embedded"](), [*changes, "steps=7", "spm.eps=1e-4", "compile=true"])
    plan = describe(config, "embedded")
    assert list(plan["changed"]) == ["data.root", "cache_root", "fraction", "steps", "compile"]
    assert plan["changed"]["steps"] == [400, 7], "spm.eps is what it was"
    lines = as_text(plan).splitlines()
    assert "  fraction: 0.01 -> 0.25" in lines and "  compile: false -> true" in lines
    named = dataclasses.replace(config, store=str(next((mini_root / "stores").glob("*.zarr"))))
    assert f"  store: '' -> {named.store}" in as_text(describe(named, "embedded")).splitlines()
    assert "changes to the recipe: none" in as_text(describe(config_of(mini_root)))


def test_dry_run_refuses_what_a_training_would(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says where a run stands that may be gone on with."""
    config, out = config_of(mini_root), tmp_path / "run"
    assert describe(config, "", out)["state"] == ""
    assert describe(config, "", out, resume=True)["state"] == "starts anew" and not out.exists()
    stopped_after(config, out, 2, monkeypatch)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    plan = describe(apply_overrides(config, ["alarm.patience=9", "runtime.workers=1"]), "", out, resume=True)
    assert plan["state"] == "continues at step 2 of 6"
    assert "state: continues at step 2 of 6" in as_text(plan).splitlines()
    refused = [(config, False, "holds an unfinished run; --resume goes on")]
    other = apply_overrides(config, ["optim.lr=0.5"])
    refused.append((other, True, r"belongs to another run \(optim.lr is 0.002 there, 0.5 now\)"))
    for start in (train, functools.partial(describe, recipe="")):
        for asked, resume, said in refused:
            with pytest.raises(DataError, match=said):
                start(asked, out=out, resume=resume)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    split = read_json(out / "split.json")
    (out / "split.json").write_text(json.dumps({**split, "num_refs": split["num_refs"] - 1}))
    with pytest.raises(DataError, match="the data carry other labels"):
        describe(config, "", out, resume=True)
    shutil.rmtree(out / "checkpoints")
    (out / "split.json").write_text(json.dumps(split))
    assert describe(config, "", out, resume=True)["state"] == "starts anew"
    (out / "done.json").write_text("{}")
    assert describe(config, "", out)["state"] == "finished"
    with pytest.raises(DataError, match="belongs to another run"):
        describe(other, "", out)


# --- another state of the code -----------------------------------------------------------------------------------


OTHER_CODE = {"version": "", "sources": "b" * 12}


def test_a_run_gone_on_with_by_other_code_says_so(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = config_of(mini_root, eval_every=0), tmp_path / "run"
    stopped_after(config, out, 1, monkeypatch)
    stopped_after(config, out, 1, monkeypatch)
    assert "began with code" not in capsys.readouterr().err
    monkeypatch.setattr("stage2_train.run_code.code_version", lambda *arguments: OTHER_CODE)
    train(config, out, quiet=True)
    record, log = read_json(out / "config.json"), read_records(out / "metrics.jsonl")
    began = record["code"]["sources"]
    assert f"note: this run began with code {began}, this is {'b' * 12}\n" in capsys.readouterr().err
    assert [(r["step"], r["code"]) for r in log if r["kind"] == "resume"] == [(1, began), (2, "b" * 12)]
    assert codes_of(record, log) == (began, "b" * 12)


def test_a_run_that_starts_anew_is_of_the_code_that_starts_it(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was killed before its first checkpoint: nothing of it goes into the network."""
    from stage2_train import training_run as module

    config, out = config_of(mini_root), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "save_checkpoint", _interrupted)
        train(config, out, quiet=True)
    began = read_json(out / "config.json")
    monkeypatch.setattr("stage2_train.run_code.code_version", lambda *arguments: OTHER_CODE)
    train(config, out, quiet=True)
    record = read_json(out / "config.json")
    assert record == began | {"code": OTHER_CODE} and began["code"] != OTHER_CODE
    assert codes_of(record, read_records(out / "metrics.jsonl")) == ("b" * 12,)
    assert "began with code" not in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_refused_in_one_line(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = config_of(mini_root, eval_every=0, steps=3), tmp_path / "run"
    stopped_after(config, out, 2, monkeypatch)
    began = read_json(out / "config.json")["code"]["sources"]
    remedy = f"; check out the code that the run began with ({began}), or train anew in another folder"
    wide = dataclasses.replace(config.segmentor, decoder_width=16)

    def sgd(model: torch.nn.Module, *arguments: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([next(model.parameters())], lr=1.0)

    for name, other, said in (
        ("stage2_train.train.new_network", lambda config: build_segmentor(wide), "another network"),
        ("stage2_train.training_run.build_optimizer", sgd, "the state of another optimizer"),
    ):
        with monkeypatch.context() as patch, pytest.raises(DataError) as refused:
            patch.setattr(name, other)
            train(config, out, quiet=True)
        message = str(refused.value)
        assert message.startswith(f"{out}: step_00000002 has {said} than this code builds (")
        assert message.endswith(remedy) and "\n" not in message and len(message) < 500
        assert read_json(out / FAILED_FILE) == {"reason": message, "step": 2}
    assert train(config, out, quiet=True)["step"] == 3 and not (out / FAILED_FILE).exists()


# --- collapse ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_no_checkpoint_holds_what_a_broken_gradient_made(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    """The step's own loss is finite; the weights after it are not."""
    from stage2_train import step as module

    real = module.average_gradients

    def broken(model: Any) -> None:
        real(model)
        next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))

    monkeypatch.setattr(module, "average_gradients", broken)
    config = apply_overrides(config_of(mini_root), [f"optim.grad_clip={clip}", "runtime.checkpoint_every=1"])
    with pytest.raises(CollapseError, match="step 0: the norm of the gradient is nan"):
        train(config, tmp_path / "run", quiet=True)
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize(
    ("share", "bounds"),
    [("foreground", {"min_foreground": 0.98, "max_foreground": 1.0}), ("coverage", {"min_coverage": 1.0})],
)
def test_a_collapsed_run_stops_with_its_reason(
    mini_root: Path, tmp_path: Path, share: str, bounds: dict[str, float]
) -> None:
    alarm = AlarmConfig(patience=2, grace_steps=0, **{"min_foreground": 0.0, "max_foreground": 1.0, **bounds})
    run = tmp_path / "run"
    with pytest.raises(
        CollapseError, match=f"step 1: pseudo-label {share} was outside .* for 2 steps"
    ) as stopped:
        train(config_of(mini_root, alarm=alarm), run, quiet=True)
    assert not (run / "done.json").exists()
    assert read_json(run / FAILED_FILE) == {"reason": str(stopped.value), "step": 1}
    status = status_of(run)
    assert (status["state"], status["progress"]["failed"]) == ("failed", str(stopped.value))
    assert "left" not in status["progress"]


def test_a_run_that_the_alarm_stopped_goes_on_with_the_alarm_off(mini_root: Path, tmp_path: Path) -> None:
    """As if there had been none."""
    runtime = dataclasses.replace(RUNTIME, checkpoint_every=1)
    config, run = config_of(mini_root, eval_every=0, steps=3, runtime=runtime), tmp_path / "run"
    alarm = AlarmConfig(patience=2, grace_steps=0, min_coverage=1.0)
    with pytest.raises(CollapseError, match="--resume --set alarm.patience=0"):
        train(dataclasses.replace(config, alarm=alarm), run, quiet=True)
    assert list_checkpoints(run / "checkpoints")[-1].name == "step_00000001"
    off = dataclasses.replace(alarm, patience=0)
    train(dataclasses.replace(config, alarm=off), run, quiet=True)
    assert not (run / FAILED_FILE).exists()
    train(config, tmp_path / "whole", quiet=True)
    assert figures(run) == figures(tmp_path / "whole")
    assert equal(dict(load_model(run).state_dict()), dict(load_model(tmp_path / "whole").state_dict()))


@pytest.mark.parametrize(("patience", "grace"), [(2, 0), (1, 1)])
def test_the_burn_in_cannot_collapse(mini_root: Path, tmp_path: Path, patience: int, grace: int) -> None:
    """Pseudo-labels of its steps teach nobody; the one step after it is not two in a row, or has its grace."""
    alarm = AlarmConfig(patience=patience, grace_steps=grace, min_foreground=0.98, max_foreground=1.0)
    config = plain_config(mini_root, "fixmatch", alarm=alarm, runtime=RUNTIME, steps=4)
    config = apply_overrides(config, ["loss.burn_in_share=0.75"])
    assert train(config, tmp_path / "run", quiet=True)["step"] == 4


def test_a_held_back_mask_that_cannot_be_read_ends_no_run(
    whole_run: Path,
    mini_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is for the log alone: said once, and the rest of the log does without."""
    real, asked = HiddenMasks.quality, 0

    def damaged(self: HiddenMasks, pseudo: Pseudo) -> dict[str, torch.Tensor]:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise DataError("instances.json: annotation 7: damaged")
        return real(self, pseudo)

    monkeypatch.setattr(HiddenMasks, "quality", damaged)
    config, out = config_of(mini_root, ema=EmaConfig(decay=0.9)), tmp_path / "run"
    train(config, out, quiet=True)
    assert_same_end(whole_run, out)
    assert asked == 3
    assert capsys.readouterr().err.count("annotation 7: damaged; the run goes on") == 1
    known = ["weak_iou" in record for record in figures(out) if record["kind"] == "train"]
    assert known == [True, True, False, False, False, False]


def test_a_full_disk_is_said_plainly_by_the_log_too(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunLog.log

    def full(self: RunLog, step: int, kind: str, **scalars: Any) -> None:
        if step == 3:
            self._file.close()
            self._file = Path("/dev/full").open("w")
        real(self, step, kind, **scalars)

    monkeypatch.setattr(RunLog, "log", full)
    config, out = config_of(mini_root, eval_every=0), tmp_path / "run"
    said = "cannot write the run's log: No space left on device; its last checkpoint is safe: .* again with --resume$"
    with pytest.raises(DataError, match=said):
        train(config, out, quiet=True)
    assert list_checkpoints(out / "checkpoints")[-1].name == "step_00000002"


def test_what_one_process_cannot_compare_no_process_logs(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are reduced by name: all processes must hold the same ones."""
    from stage2_train import training_run as module

    monkeypatch.setattr(module, "on_any_process", lambda accelerator, flag: flag is False and len(asked) == 2)
    asked: list[Pseudo] = []
    real = HiddenMasks.quality
    monkeypatch.setattr(HiddenMasks, "quality", lambda self, one: asked.append(one) or real(self, one))
    train(config_of(mini_root, steps=4, eval_every=0), tmp_path / "run", quiet=True)
    known = ["weak_iou" in record for record in figures(tmp_path / "run")]
    assert known == [True, False, False, False]


def test_a_diverged_run_stops(mini_root: Path, tmp_path: Path) -> None:
    config = apply_overrides(config_of(mini_root), ["optim.lr=1e30"])
    with pytest.raises(CollapseError, match="the loss is nan|the loss is inf"):
        train(config, tmp_path / "run", quiet=True)


# --- other methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name in METHODS if name != "l2l"])
def test_other_methods_run_and_resume(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = plain_config(mini_root, method, runtime=RUNTIME, steps=3)
    if METHOD_FACTS[method].needs_teacher:  # interrupted in the first step after the burn-in
        config = apply_overrides(config, ["loss.burn_in_share=0.34"])
    train(config, tmp_path / "whole", quiet=True)
    stopped_after(config, tmp_path / "parts", 2, monkeypatch)
    train(config, tmp_path / "parts", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    exported = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    assert equal(dict(load_model(tmp_path / "whole").state_dict()), exported)


@pytest.mark.parametrize("method", ["l2l", "catm"])
def test_a_run_stopped_in_its_burn_in_ends_with_the_same_bits(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Of methods that learn something of their own, which rests until the burn-in has ended."""
    make = mini_config if method == "l2l" else functools.partial(plain_config, method=method)
    config = apply_overrides(make(mini_root, runtime=RUNTIME, steps=4), ["loss.burn_in_share=0.5"])
    train(config, tmp_path / "whole", quiet=True)
    stopped_after(config, tmp_path / "parts", 1, monkeypatch)
    train(config, tmp_path / "parts", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    names = {"coverage", "unlabelled_loss", "weak_iou"}
    spoken = [names & record.keys() for record in figures(tmp_path / "whole")]
    assert spoken == [set(), set(), names, names]
    assert all("labelled_loss" in record for record in figures(tmp_path / "whole"))


def test_supervised_needs_no_store(mini_root: Path, tmp_path: Path) -> None:
    config = plain_config(
        mini_root, "supervised", cache_root=str(tmp_path / "none"), steps=1, runtime=RUNTIME
    )
    assert train(config, tmp_path / "run", quiet=True)["step"] == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["store"] is None


def test_everything_labelled_is_the_upper_bound(mini_root: Path, tmp_path: Path) -> None:
    config = plain_config(mini_root, "supervised", fraction=1.0, steps=1, runtime=RUNTIME)
    assert train(config, tmp_path / "run", quiet=True)["step"] == 1


def test_a_compiled_run_sees_texts_of_one_length(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generated code for texts of any length has broken in the backward pass; here it is only looked at."""
    shapes: list[tuple[bool, int]] = []

    class Watched(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model
            self.text_embedding = model.text_embedding

        def forward(self, image: torch.Tensor, ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            shapes.append((torch.is_grad_enabled(), ids.shape[1]))
            return self.model(image, ids, *rest)

    monkeypatch.setattr(torch, "compile", Watched)
    config = mini_config(mini_root, steps=3, compile=True)
    train(config, tmp_path / "run", quiet=True)
    most = config.segmentor.text.max_tokens
    assert {length for _, length in shapes} == {most} and sum(grad for grad, _ in shapes) == 3
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_teacher_and_compile_free_options_run(mini_root: Path, tmp_path: Path) -> None:
    config = config_of(
        mini_root,
        steps=2,
        eval_every=0,
        ema=EmaConfig(decay=0.5, teacher=True),
        precision="bf16",
        l2l=L2lConfig(use_rple=False),
    )
    config = apply_overrides(config, ["optim.name=muon", "optim.grad_clip=1.0", "optim.warmup_steps=1"])
    train(config, tmp_path / "run", quiet=True)
    assert all("grad_norm" in r for r in read_records(tmp_path / "run" / "metrics.jsonl"))


def test_a_finished_run_keeps_what_is_read_of_it_alone(mini_root: Path, tmp_path: Path) -> None:
    run, runtime = tmp_path / "run", dataclasses.replace(RUNTIME, shrink_finished=True)
    config = config_of(mini_root, steps=2, runtime=runtime)
    train(config, run, quiet=True)
    (checkpoint,) = list_checkpoints(run / "checkpoints")
    assert sorted(path.name for path in checkpoint.iterdir()) == ["method.pt", "state.json"]
    assert restore_method(run, config).state_dict().keys() == load_object(checkpoint, "method").keys()
    assert train(config, run, quiet=True)["already_finished"]


@pytest.mark.parametrize(
    ("method", "fact"),
    [
        ("mllm_blend", "reads_prior"),
        ("semires", "reads_candidates"),
        ("omni_res", "reads_weak_label"),
        ("ccvc", "needs_branch"),
    ],
)
def test_a_method_with_a_fact_forgotten_says_which_and_leaves_the_folder_free(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, fact: str
) -> None:
    facts = dataclasses.replace(METHOD_FACTS[method], **{fact: False})
    monkeypatch.setitem(METHOD_FACTS, method, facts)
    with pytest.raises(DataError, match=f"set {fact}=True for it in METHOD_FACTS"):
        train(plain_config(mini_root, method, runtime=RUNTIME), tmp_path, quiet=True)
    assert not (tmp_path / "config.json").exists() and status_of(tmp_path)["state"] == "failed"
    other = plain_config(mini_root, "supervised", runtime=RUNTIME, steps=1)
    assert train(other, tmp_path, resume=False, quiet=True)["step"] == 1


def test_a_run_that_failed_after_a_checkpoint_keeps_its_folder(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain_config(mini_root, "supervised", runtime=RUNTIME)

    def fails(*arguments: Any) -> float:
        raise RuntimeError("as the schedule\n has it")

    monkeypatch.setattr("stage2_train.training_run.TrainingRun._figures", fails)
    with pytest.raises(RuntimeError, match="as the schedule"):
        train(
            dataclasses.replace(
                config, runtime=dataclasses.replace(RUNTIME, checkpoint_every=1, log_every=2)
            ),
            tmp_path,
            quiet=True,
        )
    assert list_checkpoints(tmp_path / "checkpoints")
    assert read_json(tmp_path / FAILED_FILE) == {"reason": "RuntimeError: as the schedule has it", "step": 2}
    monkeypatch.undo()
    with pytest.raises(DataError, match="belongs to another run"):
        train(dataclasses.replace(config, seed=5), tmp_path, quiet=True)


def test_a_run_that_collapsed_before_its_first_checkpoint_can_be_looked_at(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = dataclasses.replace(RUNTIME, log_every=1)
    config = plain_config(mini_root, "supervised", runtime=runtime, steps=3)

    def collapsed(self: Any, step: int, *arguments: Any, **options: Any) -> None:
        if step == 1:
            raise DataError("it collapsed")

    monkeypatch.setattr("stage2_train.training_run.CollapseAlarm.check", collapsed)
    with pytest.raises(DataError, match="it collapsed"):
        train(config, tmp_path, quiet=True)
    assert (tmp_path / "config.json").is_file() and (tmp_path / "split.json").is_file()


def test_a_failure_while_a_finished_run_is_tidied_leaves_it_finished(
    mini_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is no whole one any more."""
    runtime = dataclasses.replace(RUNTIME, shrink_finished=True)
    config = plain_config(mini_root, "supervised", runtime=runtime, steps=1)

    def torn(checkpoint: Path, keep: tuple[str, ...]) -> None:
        (checkpoint / "method.pt").unlink()
        raise DataError("the disk is gone")

    monkeypatch.setattr("stage2_train.training_run.shrink_checkpoint", torn)
    with pytest.raises(DataError, match="the disk is gone"):
        train(config, tmp_path, quiet=True)
    assert not list_checkpoints(tmp_path / "checkpoints") and not (tmp_path / FAILED_FILE).exists()
    assert train(config, tmp_path, quiet=True)["already_finished"]


def test_checkpoints_that_are_damaged_or_nobodys_are_refused(mini_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(mini_run, out)
    (out / "done.json").unlink()
    config = read_run_config(out)
    (checkpoint,) = list_checkpoints(out / "checkpoints")
    (checkpoint / "model.safetensors").write_bytes(b"torn")
    log = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(DataError, match=rf"{checkpoint.name}: damaged, and there is no older one"):
        train(config, out, resume=True, quiet=True)
    assert (out / "metrics.jsonl").read_bytes() == log
    shutil.rmtree(checkpoint)
    shutil.copytree(mini_run / "checkpoints" / checkpoint.name, checkpoint)
    (out / "config.json").unlink()
    with pytest.raises(DataError, match="holds checkpoints and no config.json"):
        train(config, out, quiet=True)
    assert not (out / "config.json").exists()
