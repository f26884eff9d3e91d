"""The command line: exit statuses, messages, and that `--json` prints one object and nothing else."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from shared.errors import DataError

ROOT = Path(__file__).resolve().parents[1]


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
def test_an_unknown_recipe_is_one_short_line_that_says_where_all_are(l2l, command):
    ran = l2l(*command, "no-such-recipe")
    assert ran.status == 2 and ran.out == ""
    assert ran.err == "error: no recipe 'no-such-recipe'; `l2l recipes` lists them all\n"


def test_a_wrong_override_is_one_line(l2l):
    ran = l2l("train", "embedded", "--set", "no_such_field=1", "--dry-run")
    assert ran.status == 2 and ran.out == "" and ran.err.count("\n") == 1
    assert "no_such_field" in ran.err


def test_overrides_may_be_repeated_and_the_last_wins(l2l, monkeypatch):
    monkeypatch.setattr("stage2_train.train.train", lambda config, out, **rest: {"step": config.steps})
    ran = l2l("train", "embedded", "--set", "steps=3", "--set", "seed=1", "--set", "steps=4", "--json")
    assert ran.json["step"] == 4


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


def test_a_file_that_nothing_foresaw_is_one_line_with_its_place(l2l, monkeypatch, tmp_path):
    monkeypatch.setattr("shared.doctor.examine", lambda: (tmp_path / "gone").read_text())
    ran = l2l("doctor")
    assert ran.status == 2 and ran.out == ""
    assert re.fullmatch(
        rf"error: {re.escape(str(tmp_path))}/gone: No such file or directory \(at .*\.py, line \d+\)\n",
        ran.err,
    )


def test_an_error_of_the_system_that_names_no_file_keeps_its_traceback(monkeypatch):
    def fail():
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shared.doctor.examine", fail)
    monkeypatch.setattr(sys, "argv", ["l2l", "doctor"])
    with pytest.raises(OSError, match="Input/output error"):
        cli.main()


@pytest.mark.parametrize("name", [b"caf\xe9", "\u96ea".encode()])
def test_a_name_that_the_terminal_cannot_show_is_printed_with_escapes(name, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", "status", os.fsencode(tmp_path) + b"/" + name],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1 and b"\\u" in done.stderr


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
    assert wrong.status == 2 and "no recipe 'papre' (close to it: paper" in wrong.err
