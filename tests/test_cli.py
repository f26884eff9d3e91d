"""The command line: exit statuses, messages, and that `--json` prints one object and nothing else."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from shared.errors import DataError

ROOT = Path(__file__).resolve().parents[1]


class Ran:
    """What one call left behind."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def json(self):
        lines = self.out.splitlines()
        assert len(lines) == 1, f"expected one line on standard output, got {self.out!r}"
        answer = json.loads(lines[0])
        assert isinstance(answer, dict)
        return answer


@pytest.fixture
def l2l(monkeypatch, capfd):
    """Call the command line in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["l2l", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        out, err = capfd.readouterr()
        return Ran(exit_info.value.code or 0, out, err)

    return call


@pytest.fixture(scope="module")
def refshapes(tmp_path_factory):
    """A small embedded data set."""
    from shared.synth.refshapes import write_refshapes

    root = tmp_path_factory.mktemp("refshapes")
    write_refshapes(root, "refshapes", 12, 0, progress=False)
    return root


def test_help_loads_no_torch_and_names_the_commands():
    lines = (
        "import sys, cli",
        "sys.argv = ['l2l', '--help']",
        "try: cli.main()",
        "finally: print('torch' in sys.modules)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
    for name in ("doctor", "data", "priors", "train", "eval", "ablate", "params", "report"):
        assert name in done.stdout


@pytest.mark.parametrize("command", [("priors", "run"), ("train",), ("params",)])
def test_an_unknown_recipe_is_one_line_that_names_the_known_ones(l2l, command):
    ran = l2l(*command, "no-such-recipe")
    assert ran.status == 2 and ran.out == ""
    assert ran.err.startswith("error: no recipe 'no-such-recipe'") and "embedded" in ran.err
    assert ran.err.count("\n") == 1


def test_a_wrong_override_is_one_line(l2l):
    ran = l2l("train", "embedded", "--set", "no_such_field=1", "--dry-run")
    assert ran.status == 2 and ran.out == "" and ran.err.count("\n") == 1
    assert "no_such_field" in ran.err


def test_overrides_may_be_repeated_and_the_last_wins(l2l, monkeypatch):
    monkeypatch.setattr("stage2_train.train.train", lambda config, out, **rest: {"step": config.steps})
    ran = l2l("train", "embedded", "--set", "steps=3", "--set", "seed=1", "--set", "steps=4", "--json")
    assert ran.json["step"] == 4


def test_params_counts_the_parts_of_a_recipe(l2l):
    full, plain = (
        l2l("params", "embedded", "--json").json,
        l2l("params", "supervised-embedded", "--json").json,
    )
    assert full["sesm"] > 0 and plain["sesm"] == 0
    assert full["segmentor"] - plain["segmentor"] == full["sesm"]
    assert f"{full['segmentor']:,}" in l2l("params", "embedded").out


def test_params_of_the_paper_are_the_published_ones(l2l):
    assert "227,739,514" in l2l("params", "paper-baseline").out


def test_missing_data_is_status_2(l2l, tmp_path):
    ran = l2l("data", "check", tmp_path, "--dataset", "refcoco", "--split-by", "unc")
    assert ran.status == 2 and ran.out == ""
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1 and "refcoco" in ran.err


def test_an_unknown_command_is_status_2(l2l):
    assert l2l("no-such-command").status == 2


def test_a_message_of_several_lines_becomes_one(l2l, monkeypatch):
    def fail():
        raise DataError("first\n  second")

    monkeypatch.setattr("shared.doctor.examine", fail)
    ran = l2l("doctor")
    assert (ran.status, ran.err) == (2, "error: first second\n")


def test_an_interrupt_is_status_130(l2l, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("shared.doctor.examine", interrupt)
    assert l2l("doctor").status == 130


def test_an_interrupt_of_what_goes_on_says_what_is_kept(l2l, monkeypatch, grid):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("stage1_priors.run.run_priors", interrupt)
    monkeypatch.setattr("stage2_train.ablate.run_grid", interrupt)
    for words in (("priors", "run", "embedded"), ("ablate", grid)):
        ran = l2l(*words)
        assert ran.status == 130 and ran.err.startswith("interrupted: ") and "are kept" in ran.err
        assert ran.err.endswith("; the same command goes on\n") and ran.err.count("\n") == 1
        assert l2l(*words, "--quiet").err == ""


def test_a_bug_is_not_dressed_as_a_user_error(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr("shared.doctor.examine", fail)
    monkeypatch.setattr(sys, "argv", ["l2l", "doctor"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_json_is_clean_whatever_libraries_print(l2l, monkeypatch, tmp_path):
    def noisy(out, flavour, images, seed, progress):
        print("from Python")
        os.write(1, b"from C\n")
        return {"root": str(out), "share": float("nan"), "args": [flavour, images, seed, progress]}

    monkeypatch.setattr("shared.synth.refshapes.write_refshapes", noisy)
    ran = l2l("data", "synth", tmp_path, "--images", "7", "--seed", "3", "--json")
    assert ran.json == {"root": str(tmp_path), "share": None, "args": ["refshapes", 7, 3, False]}
    assert "from Python" in ran.err and "from C" in ran.err


def test_quiet_is_silent_though_models_are_loaded(refshapes, tmp_path):
    environment = {name: value for name, value in os.environ.items() if "PROGRESS" not in name}
    settings = (f"data.root={refshapes}", f"cache_root={tmp_path}", "splits=val", "engine.kind=transformers")
    command = [sys.executable, "cli.py", "priors", "run", "embedded", "--quiet"]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.startswith(str(tmp_path))


def test_synth_then_check_then_split(l2l, tmp_path):
    made = l2l("data", "synth", tmp_path, "--images", "10", "--json")
    assert made.status == 0 and made.json["splits"]["train"]["images"] == 10
    again = l2l("data", "synth", tmp_path, "--images", "10")
    assert again.status == 2 and again.err.startswith("error: ")
    where = (tmp_path, "--dataset", "refshapes", "--split-by", made.json["split_by"])
    checked = l2l("data", "check", *where, "--json")
    assert checked.status == 0 and checked.json["ok"] is True
    table = l2l("data", "check", *where)
    assert table.status == 0 and "train" in table.out


def test_a_faulty_data_set_is_status_1(l2l, tmp_path):
    made = l2l("data", "synth", tmp_path, "--images", "4", "--json").json
    next(path for path in (tmp_path / "images").rglob("*") if path.is_file()).write_bytes(b"torn")
    checked = l2l(
        "data", "check", tmp_path, "--dataset", "refshapes", "--split-by", made["split_by"], "--json"
    )
    assert checked.status == 1 and checked.json["ok"] is False


def test_split_prints_the_published_draw(l2l, refshapes):
    import random

    from shared.refer import load_refer

    data = (refshapes, "--dataset", "refshapes", "--split-by", "unc")
    where = (*data, "--fraction", "0.25", "--split-seed", "5")
    split = l2l("data", "split", *where, "--json").json
    loaded = load_refer(refshapes, "refshapes", "unc")
    assert split["image_ids"] == random.Random(5).sample(loaded.train_image_ids(), 3)
    labelled = [sample for sample in loaded.samples("train") if sample.image_id in split["image_ids"]]
    assert set(split["file_names"]) == {sample.file_name for sample in labelled}
    assert split["num_sentences"] == len(labelled) and split["num_images"] == 3
    text = l2l("data", "split", *where).out.splitlines()
    assert [int(line) for line in text[1:]] == split["image_ids"]


def test_a_fraction_of_no_image_is_refused(l2l, refshapes):
    ran = l2l("data", "split", refshapes, "--dataset", "refshapes", "--split-by", "unc", "--fraction", "0.01")
    assert ran.status == 2 and "0.01" in ran.err


@pytest.mark.parametrize("command", ["status", "verify", "score", "inspect"])
def test_a_missing_store_is_named(l2l, tmp_path, command):
    ran = l2l("priors", command, tmp_path / "none.zarr")
    assert ran.status == 2 and "none.zarr" in ran.err and ran.err.count("\n") == 1


def test_priors_run_plans_without_an_engine(l2l, refshapes, tmp_path):
    sets = ("--set", f"data.root={refshapes}", "--set", f"cache_root={tmp_path}")
    ran = l2l("priors", "run", "embedded", *sets, "--dry-run", "--json")
    assert ran.status == 0
    assert ran.json["pairs"] > 0 and sum(ran.json["splits"].values()) == ran.json["pairs"]


def test_training_without_a_store_is_refused(l2l, refshapes, tmp_path):
    sets = ("--set", f"data.root={refshapes}", "--set", f"cache_root={tmp_path}")
    ran = l2l("train", "embedded", *sets, "--set", "fraction=0.5", "--dry-run")
    assert ran.status == 2 and ran.out == "" and ran.err.count("\n") == 1
    assert str(tmp_path) in ran.err


def test_train_dry_run_prints_the_resolved_config(l2l, refshapes, tmp_path):
    arguments = ("--set", f"data.root={refshapes}", "--set", "fraction=0.5", "--set", "steps=7")
    arguments = (*arguments, "--set", "spm.eps=0.1")
    ran = l2l("train", "supervised-embedded", *arguments, "--out", tmp_path / "run", "--dry-run", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["config"]["steps"] == 7 and ran.json["config"]["fraction"] == 0.5
    assert ran.err == "note: spm.eps=0.1 has no effect: method is supervised\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["eval", "report"])
def test_a_missing_run_is_named(l2l, tmp_path, command):
    ran = l2l(command, tmp_path / "no-run")
    assert ran.status == 2 and "no-run" in ran.err and ran.err.count("\n") == 1


def test_eval_shows_both_sizes_and_the_prior_and_hands_everything_on(l2l, monkeypatch, tmp_path):
    asked = []

    def score(run, split, **options):
        asked.append((split, options))
        scores = {"oiou": 0.5, "miou": 0.25} | {f"pr@0.{tenth}": tenth / 100 for tenth in range(5, 10)}
        prior = {"original": scores | {"oiou": 0.75}, "model": scores} if split == "val" else None
        result = {
            "split": split,
            "model": scores,
            "original": scores,
            "prior": prior,
            "prior_note": "no prior: why",
        } | ({"with_prior": {"original": scores, "model": scores}} if options["with_prior"] else {})
        shared = {"testA": None, "testB": 3}.get(split, 0)
        return result | {
            "resolution": [96, 96],
            "limit": options["limit"],
            "num": 7,
            "shared_with_train": shared,
        }

    monkeypatch.setattr("stage2_train.evaluate.evaluate_run", score)
    ran = l2l("eval", tmp_path, "--split", "val", "--split", "testB")
    assert [split for split, _ in asked] == ["val", "testB"] and asked[0][1]["write"]
    cells = [line.split() for line in ran.out.splitlines()[2:]]
    assert cells[0] == "val original network 0.5000 0.2500 0.0500 0.0600 0.0700 0.0800 0.0900".split()
    assert [row[:2] for row in cells] == [
        *([["val", "original"], ["val", "96x96"]] * 2),
        ["testB", "original"],
        ["testB", "96x96"],
        ["testB", "no"],
        ["testB", "3"],
    ]
    assert "testB  3 of 7 sentences are of images that were trained on" in ran.out
    assert "frozen prior   0.7500" in ran.out
    assert (
        "testA  not known how many sentences are of images" in l2l("eval", tmp_path, "--split", "testA").out
    )
    assert list(l2l("eval", tmp_path, "--json").json) == ["val"]
    more = ["--limit", "7", "--workers", "2", "--store", "x", "--root", "y", "--self-guided", "--with-prior"]
    assert "another method" not in ran.out
    said = l2l("eval", tmp_path, *more, "--batch", "5").out
    assert (
        "7 evenly spaced" in said and "with prior     0.5000" in said and "with prior: another method" in said
    )
    wanted = {"store": "x", "root": "y", "limit": 7, "workers": 2, "self_guided": True, "with_prior": True}
    wanted |= {"dataset_name": "", "split_by": "", "data_name": ""}
    assert asked[-1][1] == {**wanted, "batch": 5, "write": False, "quiet": False}
    assert asked[0][1]["batch"] == 64
    for option in ("--quiet", "--json"):
        l2l("eval", tmp_path, option)
        assert asked[-1][1]["quiet"] is True
    monkeypatch.setenv("RANK", "1")
    assert l2l("eval", tmp_path).out == "", "of several processes the first answers"


def test_train_hands_everything_on(l2l, monkeypatch, tmp_path):
    seen = {}

    def fake(config, out, **rest):
        seen.update(rest, steps=config.steps, out=out)
        return {"step": config.steps, "seconds": 1.25, "metrics": {}}

    monkeypatch.setattr("stage2_train.train.train", fake)
    ran = l2l("train", "embedded", "--set", "steps=9", "--out", tmp_path / "r", "--resume", "--json")
    assert ran.json == {"run": str(tmp_path / "r"), "step": 9, "seconds": 1.25, "metrics": {}}
    assert seen == {
        "steps": 9,
        "out": tmp_path / "r",
        "resume": True,
        "recipe": "embedded",
        "overrides": ["steps=9"],
        "quiet": True,
    }
    assert l2l("train", "embedded", "--set", "steps=9").out == "runs/embedded: 9 steps in 1 s\n"
    assert seen["resume"] is False and seen["quiet"] is False
    l2l("train", "embedded", "--set", "steps=9", "--quiet")
    assert seen["quiet"] is True


GRID = """
reference = "supervised"
fractions = [0.5]
seeds = [1, 2]
set = ["data.root={root}", "cache_root={root}/none"]
[methods]
supervised = {{ recipe = "supervised-embedded" }}
fixmatch = {{ recipe = "fixmatch-embedded" }}
"""


@pytest.fixture
def grid(refshapes, tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID.format(root=refshapes))
    return path


def test_ablate_dry_run_lists_the_cells(l2l, grid, tmp_path):
    ran = l2l("ablate", grid, "--out", tmp_path / "out", "--dry-run", "--json")
    assert ran.status == 0, ran.err
    assert len(ran.json["cells"]) == 4 and ran.json["store"] is None
    text = l2l("ablate", grid, "--dry-run").out
    assert "out: runs/grid\n" in text and text.count("to do ") == 4 and "--set seed=2" in text
    assert not (tmp_path / "out").exists()


def test_ablate_refuses_with_one_line(l2l, grid, tmp_path):
    for arguments in (("--only", "3/3"), ("--out", tmp_path, "--only", "x")):
        ran = l2l("ablate", grid, *arguments)
        assert ran.status == 2 and ran.out == "" and ran.err.count("\n") == 1 and "i/n" in ran.err
    grid.write_text(grid.read_text().replace("seeds = [1, 2]", 'seeds = ["one"]'))
    ran = l2l("ablate", grid)
    assert ran.status == 2 and "seeds" in ran.err and str(grid) in ran.err


def test_ablate_hands_everything_on_and_says_whether_its_share_is_done(l2l, monkeypatch, grid, tmp_path):
    seen = []

    def fake(cells, out, **rest):
        seen.append((len(cells.cells), out, rest))
        left = len(seen) - 1
        return {
            "rows": [],
            "prior": {},
            "image_ids_file": "",
            "split_seeds": [0],
            "codes": {},
            "counts": {"done": 4},
            "unfinished": [],
            "own_unfinished": left,
            "reference": "r",
        }

    monkeypatch.setattr("stage2_train.ablate.run_grid", fake)
    ran = l2l("ablate", grid, "--out", tmp_path / "o", "--jobs", "3", "--only", "1/4", "--json")
    assert ran.status == 0 and ran.json["counts"] == {"done": 4}
    assert seen[0] == (4, tmp_path / "o", {"jobs": 3, "only": (1, 4), "quiet": True})
    ran = l2l("ablate", grid)
    assert ran.status == 1 and "cells: 4 done" in ran.out
    assert seen[1] == (4, Path("runs/grid"), {"jobs": 1, "only": (0, 1), "quiet": False})


@pytest.mark.parametrize("command", [("train", "embedded"), ("ablate", "GRID")])
def test_a_store_is_named_once(l2l, grid, command):
    words = [grid if word == "GRID" else word for word in command]
    ran = l2l("submit", *words, "--after", "a.zarr", "--set", "store=b.zarr", "--dry-run")
    assert ran.status == 2 and "leave out --set store=" in ran.err


def test_submit_dry_run_prints_the_scripts_and_writes_nothing(l2l, refshapes, grid, tmp_path):
    site = tmp_path / "cluster.toml"
    site.write_text('partition = "gpu"\ngpus_per_node = 4\n')
    sets = ("--set", f"data.root={refshapes}", "--set", f"cache_root={tmp_path}/stores")
    commands = {
        "priors": ("embedded", *sets, "--tasks", "2"),
        "train": (
            "supervised-embedded",
            *sets,
            "--set",
            "fraction=0.5",
            "--out",
            tmp_path / "run",
            "--nodes",
            "2",
        ),
        "ablate": (grid, "--out", tmp_path / "grid"),
    }
    for name, arguments in commands.items():
        ran = l2l("submit", name, *arguments, "--site", site, "--dry-run")
        assert ran.status == 0, ran.err
        assert "#SBATCH --partition=gpu\n" in ran.out and f"name={name} " in ran.out
        jobs = l2l("submit", name, *arguments, "--site", site, "--dry-run", "--json").json["jobs"]
        assert [job["name"] for job in jobs] == ([name, "verify"] if name == "priors" else [name])
    assert (
        "--nnodes=2 --nproc-per-node=4"
        in l2l("submit", "train", *commands["train"], "--dry-run", "--site", site).out
    )
    scored = l2l(
        "submit", "train", *commands["train"], "--split", "testA", "--dry-run", "--site", site, "--json"
    )
    train, score = scored.json["jobs"]
    assert "--gres=gpu:4" in train["text"] and "--gres=gpu:1" in score["text"]
    assert f"-m cli eval {tmp_path / 'run'} --split testA --root {refshapes}\n" in score["text"]
    assert "--dependency=afterok:<train>" in score["sbatch"][0]
    assert not any((tmp_path / name).exists() for name in ("run", "grid"))
    site.write_text("gpus = 4\n")
    ran = l2l("submit", "ablate", grid, "--site", site, "--dry-run")
    assert ran.status == 2 and f"{site}: gpus: no such key" in ran.err and ran.err.count("\n") == 1


def test_without_slurm_submit_does_the_work_here(l2l, refshapes, tmp_path, monkeypatch):
    """Masks are imported, which needs no model; then the store is verified."""
    import numpy as np

    from shared.refer import load_refer

    (tmp_path / "masks").mkdir()
    for sample in load_refer(refshapes, "refshapes", "unc").samples("val"):
        np.save(tmp_path / "masks" / f"{sample.sample_id}.npy", np.full((8, 8), 0.5, np.float32))
    sets = {
        "data.root": refshapes,
        "data.dataset": "refshapes",
        "source": tmp_path / "masks",
        "splits": "val",
        "grid": "16",
        "cache_root": tmp_path / "stores",
    }
    recipe = ["import", *(part for name, value in sets.items() for part in ("--set", f"{name}={value}"))]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(ROOT)
    ran = l2l("submit", "priors", *recipe, "--json")
    assert ran.status == 0, ran.err
    told = f"no sbatch on this machine: the work is done here, on {socket.gethostname()}, and now; if this is"
    assert told in ran.err and "press Ctrl-C and load Slurm's commands first" in ran.err
    assert ran.json["note"] == "done here, without Slurm" and ran.json["jobs"] == []
    status = l2l("status", ran.json["target"], "--json").json
    assert status["state"] == "done" and status["tasks"] == []
    assert l2l("submit", "priors", *recipe).out.endswith("done already, nothing to submit\n")


def test_status_of_nothing_is_one_line(l2l, tmp_path):
    ran = l2l("status", tmp_path / "none")
    assert ran.status == 2 and "none" in ran.err and ran.err.count("\n") == 1


def test_status_of_several_is_one_answer(l2l, tmp_path):
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        run.mkdir()
        (run / "config.json").write_text('{"config": {"steps": 9}}')
    (runs[0] / "done.json").write_text("{}")
    answer = l2l("status", *runs, "--json").json
    assert [one["state"] for one in answer["targets"]] == ["done", "unfinished"]
    assert l2l("status", runs[0], "--json").json == answer["targets"][0]
    shown = [l2l("status", run).out for run in runs]
    assert l2l("status", *runs).out == "\n".join(shown)


def test_predict_hands_everything_on(l2l, monkeypatch, tmp_path):
    seen = []

    def one(*args, **options):
        seen.append((*args, options))
        return {"area_px": 3, "rle": {"size": [1, 3], "counts": "03"}}

    def many(*args, **options):
        seen.append((*args, options))
        return {"num": 2, "num_failed": len(seen) - 3}

    monkeypatch.setattr("stage2_train.predict.predict_one", one)
    monkeypatch.setattr("stage2_train.predict_lines.predict_jsonl", many)
    assert (
        l2l("predict", "run", "a.jpg", "the mug", "--out", tmp_path, "--json").json["rle"]["counts"] == "03"
    )
    assert l2l("predict", "run", "a.jpg", "the mug").out == "area_px: 3\n"
    ran = l2l("predict", "run", "--jsonl", "p.jsonl", "--batch", "3")
    assert (ran.status, ran.out) == (0, "num: 2\nnum_failed: 0\n")
    ran = l2l("predict", "run", "--jsonl", "p.jsonl", "--no-overlay", "--json")
    assert (ran.status, ran.json) == (1, {"num": 2, "num_failed": 1})
    many_words = (Path("run"), Path("p.jsonl"), Path("predictions"))
    assert seen == [
        (Path("run"), Path("a.jpg"), "the mug", tmp_path, {"with_overlay": True}),
        (Path("run"), Path("a.jpg"), "the mug", Path("predictions"), {"with_overlay": True}),
        (*many_words, {"batch": 3, "with_overlay": True, "quiet": False}),
        (*many_words, {"batch": 16, "with_overlay": False, "quiet": True}),
    ]
    for wrong in ((), ("a.jpg", "x", "--jsonl", "p.jsonl")):
        ran = l2l("predict", "run", *wrong)
        assert ran.status == 2 and "either IMAGE and EXPRESSION, or --jsonl" in ran.err


def test_own_data_goes_the_same_way_as_refer_data(l2l, tmp_path):
    path = l2l("data", "init", tmp_path / "mine", "--json").json["path"]
    assert l2l("data", "check", path, "--json").json["unlabelled"] == {"train": 5}
    split = l2l("data", "split", path, "--fraction", "1", "--json").json
    assert (split["dataset"], split["num_images"]) == ("photos", 3)
    printed = l2l("data", "split", path, "--fraction", "1").out.splitlines()
    assert printed[1:] == split["file_names"] and split["file_names"][0].startswith("images/")
    plan = l2l(
        "priors",
        "run",
        "embedded",
        "--set",
        f"data.root={path}",
        "--set",
        "splits=train,val",
        "--dry-run",
        "--json",
    ).json
    assert plan["splits"] == {"train": 8, "val": 3} and plan["problem"] is None
    sets = ("--set", f"data.root={path}", "--set", "fraction=1")
    plan = l2l("train", "fixmatch-embedded", *sets, "--out", tmp_path / "run", "--dry-run", "--json").json
    assert '"num_unlabelled_refs": 5' in plan["plan"] and plan["config"]["data"]["dataset"] == "photos"
    ran = l2l("data", "check", tmp_path / "mine")
    assert ran.status == 2 and "a folder needs --dataset and --split-by" in ran.err


def test_leakage_is_status_1(l2l, refshapes, tmp_path):
    assert l2l("data", "leakage", refshapes, "--dataset", "refshapes:unc").status == 0
    (tmp_path / "ids.txt").write_text("".join(f"{number}\n" for number in range(1, 100)))
    ran = l2l(
        "data", "leakage", refshapes, "--dataset", "refshapes:unc", "--ids", tmp_path / "ids.txt", "--json"
    )
    assert ran.status == 1 and ran.json["ok"] is False


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_data_are_not_made_where_a_file_is(l2l, tmp_path, place):
    (tmp_path / "taken").write_text("mine")
    for command in ("init", "synth"):
        ran = l2l("data", command, tmp_path / place)
        assert ran.status == 2 and "cannot write" in ran.err and "a file is in the way" in ran.err
    assert (tmp_path / "taken").read_text() == "mine"


def test_parquet_that_cannot_be_imported_is_status_2(l2l, tmp_path):
    out = tmp_path / "own.jsonl"
    ran = l2l("data", "import", tmp_path, out)
    assert ran.status == 2 and "no .parquet file there" in ran.err and ran.err.count("\n") == 1
    ran = l2l("data", "import", tmp_path, out, "--column", "sentence")
    assert ran.status == 2 and "--column is 'sentence', expected NAME=COLUMN" in ran.err
    assert not out.exists()


def test_pack_then_check_without_loose_files(l2l, tmp_path):
    import shutil

    path = l2l("data", "init", tmp_path / "mine", "--json").json["path"]
    assert l2l("data", "pack", path, "--json").json["added"] == 11
    pack = Path(path).parent / "images.h5"
    pack.write_bytes(pack.read_bytes()[:-1])  # not even its list can be read: it is built anew
    assert l2l("data", "pack", path, "--json").json["added"] == 11
    shutil.rmtree(tmp_path / "mine" / "images")
    assert l2l("data", "check", path).status == 0
    assert "added: 0" in l2l("data", "pack", path).out


def test_export_labels_hands_everything_on(l2l, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "stage2_train.export_labels.export_labels",
        lambda run, out, **options: seen.append((run, out, options)) or {"num": 3},
    )
    assert l2l("export-labels", "runs/a", "--json").json == {"num": 3}
    assert (
        l2l("export-labels", "runs/a", "--out", tmp_path, "--batch", "4", "--limit", "9", "--root", "y").out
        == "num: 3\n"
    )
    assert seen == [
        (Path("runs/a"), Path("runs/a/labels"), {"batch": 16, "limit": 0, "root": "", "quiet": True}),
        (Path("runs/a"), tmp_path, {"batch": 4, "limit": 9, "root": "y", "quiet": False}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "gone.jpg", "expression": "x"}', "line 1: image 'gone.jpg'"),
        ('{"image": "../a.jpg", "expression": "x"}', "leads out of the image folder"),
        ('{"image": "bomb.png", "expression": "x"}', "bomb.png: image cannot be read"),
        ('{"image": 3, "expression": "x"}', "line 1: 'image' is 3"),
        ("[" * 100_000, "line 1: not JSON"),
        ("\x00\xff", "line 1: not JSON"),
    ],
)
def test_hostile_lines_are_one_line_of_error(l2l, tmp_path, line, message):
    from tests.shared.test_images import png_of

    (tmp_path / "bomb.png").write_bytes(png_of(50_000, 50_000))
    (tmp_path / "own.jsonl").write_text(line + "\n", encoding="latin-1")
    ran = l2l("data", "split", tmp_path / "own.jsonl", "--fraction", "1")
    assert ran.status == 2 and ran.out == "" and ran.err.count("\n") == 1, ran.err
    assert message in ran.err and ran.err.startswith(f"error: {tmp_path}")
    checked = l2l("data", "check", tmp_path / "own.jsonl")
    assert checked.status == 1 and message.partition(": ")[0] in checked.out


def test_recipes_are_listed_with_their_fields(l2l):
    listed = l2l("recipes").out
    assert (
        "l2l train RECIPE" in listed
        and "  fixmatch-embedded  " in listed
        and "  refcoco-qwen2.5-vl-7b  " in listed
    )
    both = l2l("recipes", "embedded", "--json").json
    assert set(both) == {"priors run", "train"}
    assert both["train"]["optim.muon.lr"]["value"] == "0.006" and both["train"]["spm.eps"]["meaning"]
    (only,) = l2l("recipes", "paper", "--json").json
    assert only == "train"
    assert "  l2l.tau_fg=0.7\n      " in l2l("recipes", "paper").out
    wrong = l2l("recipes", "papre")
    assert wrong.status == 2 and "no recipe 'papre'; is 'paper' meant? (there are embedded" in wrong.err


def test_a_folder_of_own_data_is_pointed_to_its_file(l2l, tmp_path):
    l2l("data", "init", tmp_path / "photos")
    asked = l2l("data", "check", tmp_path / "photos")
    assert asked.status == 2 and f"or is {tmp_path}/photos/photos.jsonl meant?" in asked.err
