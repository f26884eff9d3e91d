"""Every command in the documentation is run, at the smallest size; `docs_rows` says how.

The rows share one working folder and build on each other in the order of the pages, so the file runs as a whole.
"""

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

import cli
from shared.config import DataConfig
from shared.datasets import load_dataset
from shared.refer import load_refer
from shared.synth.refshapes import write_refshapes
from tests.docs_rows import LAST_STORE, NAMED, ROOT, ROWS, Row
from tests.test_docs import PAGES, commands, faults

TEXT = {page: (ROOT / page).read_text("utf-8") for page in PAGES}
DOCUMENTED = {" ".join(words): words for page in PAGES for words in commands(TEXT[page])}

TARGETS = sorted(
    {
        target
        for text in TEXT.values()
        for target in re.findall(r"(?:`|^)make\b ?([a-z-]*)", text, re.MULTILINE)
    }
)
"""What make is called with; "" is `make` alone."""


def blocks(page: str, language: str, start: str = "") -> list[str]:
    """Code blocks of a page in a language, those that begin with `start`."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", TEXT[page], re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language and block.startswith(start)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with what a reader brings, as the current folder; and the stores that are made."""
    folder, before = tmp_path_factory.mktemp("reader"), Path.cwd()
    os.chdir(folder)
    try:
        _bring()
        yield []
    finally:
        os.chdir(before)


def _bring() -> None:
    """RefCOCO, weights, masks, a photo, an export and a cluster's file, as far as drawn scenes can stand for them."""
    from transformers import BertConfig, BertModel, SwinConfig, SwinModel

    from tests.stage2_train.test_official_weights import swin_state

    write_refshapes(Path("data/refer"), "refshapes", 16, 1, progress=False)
    Path("data/refer/refshapes").rename("data/refer/refcoco")
    Path("masks").mkdir()
    for sample in load_refer("data/refer", "refcoco", "unc").samples():
        Image.new("L", (16, 16), 200).save(f"masks/{sample.sample_id}.png")
    photo = next(Path("data/refer/images").iterdir())
    Image.open(photo).save("new.jpg")
    Path("seen.txt").write_text("900000001\n900000002\n")
    if find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet

        Path("export").mkdir()
        table = {"image": [{"bytes": photo.read_bytes(), "path": None}], "expression": ["the red star"]}
        pyarrow.parquet.write_table(pyarrow.table(table), "export/train-00000-of-00001.parquet")
    (site,) = blocks("shared/cluster/README.md", "", 'partition = "gpu"')
    Path("cluster.toml").write_text(site)
    torch.save({"model": swin_state()}, "swin.pth")
    SwinModel(
        SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, image_size=64)
    ).save_pretrained("swin")
    BertModel(
        BertConfig(
            vocab_size=256, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    ).save_pretrained("bert")
    Path("bert/vocab.txt").write_bytes((ROOT / "stage2_train/tiny/weights/vocab.txt").read_bytes())
    for grid in sorted((ROOT / "stage2_train/grids").glob("*.toml")):
        _shrink(grid, Path("stage2_train/grids") / grid.name)


def _shrink(grid: Path, target: Path) -> None:
    """The same grid with its reference alone, one seed and few steps."""
    whole = tomllib.loads(grid.read_text("utf-8"))
    reference = whole["reference"]
    changes = ["steps=2", "batch_labelled=2", "batch_unlabelled=2", "eval_every=0"]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        f'reference = "{reference}"\nfractions = [0.25]\nseeds = [22]\nsplits = ["val"]\nset = {json.dumps(changes)}\n'
        f'[methods.{reference}]\nrecipe = "{whole["methods"][reference]["recipe"]}"\n'
    )


def test_every_documented_command_has_a_row_and_every_row_a_command():
    listed = [row.command for row in ROWS]
    assert len(set(listed)) == len(listed)
    assert sorted(DOCUMENTED) == sorted([*listed, *NAMED])
    assert [name for name in NAMED if not any(command.startswith(f"{name} ") for command in listed)] == []


def calls(row: Row, store: str) -> list[list[str]]:
    """The arguments that a row stands for, one list a run."""
    found = []
    for values in itertools.product(*row.each.values()):
        swap = {**row.swap, **dict(zip(row.each, values, strict=True))}
        words = [_swapped(word, swap).replace(LAST_STORE, store) for word in DOCUMENTED[row.command]]
        dry = ["--dry-run"] if row.not_here else []
        more = [word.replace(LAST_STORE, store) for word in shlex.split(row.more)]
        found.append([*words, *more, *dry])
    return found


def _swapped(word: str, swap: dict[str, str]) -> str:
    keys = sorted(swap, key=len, reverse=True)
    if not keys:
        return word
    pattern = "|".join(rf"(?<!\w){re.escape(key)}(?!\w)" for key in keys)
    return re.sub(pattern, lambda match: swap[match.group()], word)


def environment() -> dict[str, str]:
    """For a process of its own; what the tests are spared, a reader is not."""
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    return {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run_inside(arguments: list[str], status: int, monkeypatch, capfd) -> str:
    """Run a command in this process; its standard output."""
    monkeypatch.setattr(sys, "argv", ["l2l", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert (ended.value.code or 0) == status, err[-2000:]
    return out


def run_process(arguments: list[str], launcher: list[str]) -> str:
    """Run a command in a process of its own; its standard output."""
    done = subprocess.run(
        [sys.executable, *launcher, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if "--quiet" in arguments:
        assert done.stderr == ""
    return done.stdout


def _heed_ctrl_c() -> None:
    """Undo what a shell does to the processes it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def serve(arguments: list[str]) -> str:
    """Start a server, fetch its page, press Ctrl-C; what it said."""
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, preexec_fn=_heed_ctrl_c
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            with urllib.request.urlopen(said.split()[0], timeout=60) as page:
                assert page.status == 200 and b"refshapes" in page.read()
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=60) == 130
        finally:
            server.kill()
    return said


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[pytest.mark.vllm] if row.vllm else [], id=f"l2l {row.command}")
        for row in ROWS
    ],
)
def test_a_documented_command_runs(row, place, monkeypatch, capfd):
    if row.needs and find_spec(row.needs) is None:
        pytest.skip(f"{row.needs} is not installed: pip install {row.needs}")
    launchers = {
        "process": [str(ROOT / "cli.py")],
        "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "1", str(ROOT / "cli.py")],
    }
    for arguments in calls(row, place[-1] if place else ""):
        if row.how == "inside":
            out = run_inside(arguments, row.status, monkeypatch, capfd)
        else:
            out = serve(arguments) if row.how == "serve" else run_process(arguments, launchers[row.how])
        assert re.search(row.says, out.strip()), out
        if arguments[:2] == ["priors", "run"] and "--dry-run" not in arguments:
            place.append(out.strip())


def test_python_in_the_pages_runs(place):
    snippets = [snippet for page in PAGES for snippet in blocks(page, "python")]
    named = "cache/priors/refshapes-unc.0123456789abcdef.zarr"
    assert [named in snippet for snippet in snippets] == [False, False, True, True]
    for snippet in snippets:
        exec(compile(snippet.replace(named, place[0]), "README", "exec"), {})


@pytest.mark.parametrize("page", ["README.md", "shared/own-photos.md"])
def test_the_lines_of_the_own_data_example_are_read(page, place):
    (lines,) = blocks(page, "", '{"image"')
    for line in map(json.loads, lines.splitlines()):
        for name in (line["image"], line.get("mask")):
            if isinstance(name, str):
                Path("own", name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB" if name.endswith("jpg") else "L", (128, 128), 255).save(Path("own", name))
    Path("own/photos.jsonl").write_text(lines)
    dataset = load_dataset(DataConfig(root="own/photos.jsonl", dataset=""))
    first, second = dataset.samples("train")
    (third,) = dataset.samples("val")
    assert [dataset.has_mask(sample) for sample in (first, second, third)] == [True, False, True]


def test_a_run_leaves_what_the_readme_lists(place):
    (tree,) = blocks("README.md", "", "runs/<name>/")
    names = [line.split()[0] for line in tree.splitlines()[1:] if line.startswith("  ") and line[2] != " "]
    assert len(names) > 8
    made = {name for run in ("runs/embedded-l2l", "runs/paper") for name in names if Path(run, name).exists()}
    assert set(names) - made == {"jobs/"}, "batch jobs alone were not run"


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_is_there_and_its_commands_exist(target):
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "L2L=l2l", target or "runs/embedded-l2l/report.html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    called = [line for line in done.stdout.splitlines() if re.match("l2l ", line.strip())]
    assert [(line, fault) for line in called for fault in faults(shlex.split(line)[1:])] == []
    assert target or len(called) == 5  # data, priors, two scores, report
