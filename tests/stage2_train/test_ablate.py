"""Running a grid: what is skipped, resumed, shared out and reported; first with light cells, then with real ones."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared.cluster.status import status_of
from shared.datasets import load_dataset
from shared.errors import DataError
from shared.grid_folders import FAILED_FILE, names_of
from shared.locks import locked
from shared.refer import load_refer
from shared.stopping import STOPPED
from stage2_train import ablate_cell
from stage2_train.ablate import command_of, parse_share, run_grid
from stage2_train.ablate_cell import BUSY, LOCK_FILE, hold_lock
from stage2_train.ablate_grid import Cell, Grid, read_grid
from stage2_train.ablate_state import DONE, PART, Opened, describe_grid, open_grid, state_of
from stage2_train.ablate_table import METRICS
from stage2_train.cluster_jobs import plan_grid, plan_training
from stage2_train.dry_run import describe
from stage2_train.inputs import open_split
from stage2_train.run_identity import run_record, split_record
from stage2_train.train import train
from tests.stage2_train.miniature import OWN_BYTES, write_priors
from tests.stage2_train.test_ablate_grid import grid_file

ROOT = Path(__file__).parents[2]

LIGHT = (
    f"""
METRICS = {list(METRICS)}
"""
    + """
import json, os, sys, time
from pathlib import Path
run, seconds, status, record = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
(run / "started").open("a").write("x")
(run / "config.json").write_text(record)
time.sleep(seconds)
if status < 0:
    os.kill(os.getpid(), -status)
if status:
    print("Traceback: many lines", file=sys.stderr)
    print(f"error: this cell fails with {status}", file=sys.stderr)
    print("warning: said while the process ends", file=sys.stderr)
    sys.exit(status)
scores = dict.fromkeys(METRICS, 0.5)
scores = {"original": scores, "model": scores, "resolution": [32, 32], "prior": None}
(run / "eval").mkdir(exist_ok=True)
(run / "eval" / "val.json").write_text(json.dumps(scores))
(run / "done.json").write_text("{}")
"""
)

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

Command = Callable[[Cell, Path, Opened], list[str]]


def light(seconds: float = 0.0, **status: int) -> Command:
    """Cells that write what a finished run leaves; `status` gives cells of a method another end."""

    def command(cell: Cell, out: Path, opened: Opened) -> list[str]:
        annotations = load_dataset(cell.config.data).fingerprint()
        record = json.dumps(run_record(cell.config, cell.recipe, cell.changes, None, annotations, 1))
        end = str(status.get(cell.method, 0))
        return [sys.executable, "-S", "-c", LIGHT, str(out / cell.name), str(seconds), end, record]

    return command


def starts(out: Path) -> dict[str, int]:
    return {str(p.parent.relative_to(out)): len(p.read_text()) for p in sorted(out.rglob("started"))}


@pytest.fixture
def grid(mini_root: Path, tmp_path: Path) -> Grid:
    return read_grid(grid_file(tmp_path, GRID.format(root=mini_root)))


def test_all_cells_run_once_and_a_second_call_runs_none(grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = run_grid(grid, out, jobs=2, quiet=True, command=light())
    assert answer["counts"] == {"done": 4} and answer["unfinished"] == [] and answer["own_unfinished"] == 0
    assert starts(out) == {cell.name: 1 for cell in grid.cells}
    again = run_grid(grid, out, quiet=True, command=light())
    assert again == answer and set(starts(out).values()) == {1}
    assert json.loads((out / "table.json").read_text())["counts"] == {"done": 4}
    assert (out / "table.csv").read_text().count("\n") == 1 + 2 * 2 * len(METRICS)
    assert "cells: 4 done" in (out / "table.txt").read_text()
    assert all(f">{name}</text>" in (out / "chart.svg").read_text() for name in "ab")
    assert "% data: refshapes (unc), annotations " in (out / "table.tex").read_text()


def test_a_grid_and_a_run_have_folders_of_their_own(grid: Grid, mini_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(mini_run, out)
    for use in (lambda: run_grid(grid, out, quiet=True, command=light()), lambda: describe_grid(grid, out)):
        with pytest.raises(DataError, match=r"out: holds a single run; .*--out"):
            use()
    assert not (out / "grid.json").exists()
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "grid.json").write_text("{}")
    config = grid.cells[0].config
    uses = [
        lambda: train(config, tmp_path / "grid"),
        lambda: describe(config, "embedded", tmp_path / "grid"),
        lambda: plan_training(config, (), tmp_path / "grid", 1, 1),
    ]
    for use in uses:
        with pytest.raises(DataError, match=r"grid: holds a grid; .*--out"):
            use()
    assert not (tmp_path / "grid" / "config.json").exists()


def test_cells_are_held_to_the_labels_that_each_of_them_is_given(mini_root: Path, tmp_path: Path) -> None:
    """Weak labels are other labels of the same share and draw, and each seed has a draw of its own here."""
    text = f"""
reference = "plain"
recipe = "supervised-embedded"
fractions = [0.25]
seeds = [1, 2]
split_seeds = [0, 3]
set = ["data.root={mini_root}/data"]
[methods.plain]
[methods.box]
recipe = "omni-res-box-embedded"
"""
    grid = read_grid(grid_file(tmp_path, text))
    opened = open_grid(grid, tmp_path / "out")
    for cell in grid.cells:
        run = tmp_path / "out" / cell.name
        run.mkdir(parents=True)
        record = run_record(cell.config, cell.recipe, cell.changes, None, opened.data_fingerprint, 1)
        (run / "config.json").write_text(json.dumps(record))
        dataset = load_dataset(cell.config.data)
        split = split_record(cell.config, open_split(cell.config, dataset), dataset)
        (run / "split.json").write_text(json.dumps(split))
    states = {cell.name: state_of(cell, grid, tmp_path / "out", opened) for cell in grid.cells}
    assert {name: state.state for name, state in states.items()} == dict.fromkeys(states, PART), states


def test_a_cell_is_done_once_it_has_ended_and_every_split_is_scored(mini_root: Path, tmp_path: Path) -> None:
    text = GRID.format(root=mini_root).replace("[methods.a]", 'splits = ["val", "testA"]\n[methods.a]')
    grid, out = read_grid(grid_file(tmp_path, text)), tmp_path / "out"
    opened, cell = open_grid(grid, out), grid.cells[0]
    run = out / cell.name
    (run / "eval").mkdir(parents=True)
    record = run_record(cell.config, cell.recipe, cell.changes, None, opened.data_fingerprint, 1)
    (run / "config.json").write_text(json.dumps(record))

    def score(split: str, masks: str) -> None:
        (run / "eval" / f"{split}.json").write_text(json.dumps({"masks": masks}))

    def state() -> str:
        return state_of(cell, grid, out, opened).state

    for split, masks in opened.masks.items():
        score(split, masks)
    assert state() == PART, "scores of a run that goes on"
    (run / "done.json").write_text("{}")
    assert state() == DONE
    for split in grid.splits:
        score(split, "of before they were redrawn")
        assert state() == PART
        (run / "eval" / f"{split}.json").unlink()
        assert state() == PART
        score(split, opened.masks[split])
    assert state() == DONE


TWO_PRIORS = """
reference = "plain"
recipe = "embedded"
fractions = [0.25]
seeds = [1, 2]
set = ["data.root={root}/data", "cache_root={cache}"]
[methods.plain]
recipe = "supervised-embedded"
[methods.box]
[methods.sam]
label = "SAM 2"
set = ["store={sam}"]
"""


def test_methods_are_compared_by_their_priors(mini_root: Path, tmp_path: Path) -> None:
    """Every cell is told its own store and held to it."""
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    box = write_priors(tmp_path / "cache" / "box.zarr", dataset, splits=("train", "val"))
    sam = write_priors(tmp_path / "sam.zarr", dataset, splits=("train", "val"), fingerprint="a" * 16)
    text = TWO_PRIORS.format(root=mini_root, cache=tmp_path / "cache", sam=sam)
    grid, out = read_grid(grid_file(tmp_path, text)), tmp_path / "out"
    opened = open_grid(grid, out)
    told = {cell.method: json.loads(command_of(cell, out, opened)[-1])["changes"] for cell in grid.cells}
    assert told["box"][-1] == f"store={box}" and told["sam"][-1] == f"store={sam}"
    assert told["plain"][-1] == f"store={box}", "it reads none, and calls it as box does"
    named = read_grid(
        grid_file(tmp_path, text.replace("[methods.box]", f'[methods.box]\nset = ["store={box}"]'))
    )
    plain, both = named.cells[0], open_grid(named, tmp_path / "named")
    assert len(both.stores) == 2 and "store=" not in command_of(plain, out, both)[-1]
    assert both.store_of(plain) is None
    grid_file(tmp_path, text)
    for cell in grid.cells:
        (out / cell.name).mkdir(parents=True)
        store = {
            "box": {"path": str(box), "fingerprint": "f" * 16},
            "sam": {"path": str(sam), "fingerprint": "a" * 16},
        }
        record = run_record(
            cell.config, cell.recipe, cell.changes, store.get(cell.method), dataset.fingerprint(), 1
        )
        (out / cell.name / "config.json").write_text(json.dumps(record))
    plan = describe_grid(grid, out)
    assert {cell["state"] for cell in plan["cells"].values()} == {PART}
    assert plan["stores"] == [
        {"path": str(box), "fingerprint": "f" * 16, "arms": {"box": "box"}},
        {"path": str(sam), "fingerprint": "a" * 16, "arms": {"sam": "SAM 2"}},
    ]
    write_priors(tmp_path / "cache" / "later.zarr", dataset, fingerprint="b" * 16)
    assert open_grid(grid, out).stores == opened.stores, "a grid that has begun keeps to its stores"
    with pytest.raises(DataError, match="2 prior stores fit"):
        open_grid(grid, tmp_path / "new")
    swapped = read_grid(grid_file(tmp_path, text.replace(str(sam), str(tmp_path / "cache" / "later.zarr"))))
    with pytest.raises(
        DataError, match=r"out: 2 of 6 runs .*first sam/fraction-0.25/seed-1 \(store is 'aaaa"
    ):
        run_grid(swapped, out, quiet=True)


def test_a_grid_waits_for_the_priors_of_a_new_photo(mini_root: Path, tmp_path: Path) -> None:
    """Its table can still be had once all runs have ended."""
    shutil.copytree(mini_root / "data", tmp_path / "data")
    dataset = load_refer(tmp_path / "data", "refshapes", "unc")
    write_priors(tmp_path / "cache" / "box.zarr", dataset, images=OWN_BYTES)
    photo = dataset.image_path(dataset.samples("train")[0])
    photo.write_bytes(photo.read_bytes() + b"\0")
    text = f"""
reference = "box"
recipe = "embedded"
fractions = [0.25]
seeds = [1, 2]
set = ["data.root={tmp_path}/data", "cache_root={tmp_path}/cache"]
[methods.box]
"""
    grid, out = read_grid(grid_file(tmp_path, text)), tmp_path / "out"
    ended, other = (out / cell.name for cell in grid.cells)
    for run in (ended, other):
        with pytest.raises(DataError, match=f"made for other bytes of image {photo.name} than"):
            open_grid(grid, out, quiet=True)
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
        (run / "done.json").write_text("{}")
    open_grid(grid, out)


def test_stores_of_several_priors_must_be_two_and_fit(mini_root: Path, tmp_path: Path) -> None:
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    box = write_priors(tmp_path / "cache" / "box.zarr", dataset)
    text = TWO_PRIORS.format(root=mini_root, cache=tmp_path / "cache", sam=box)
    with pytest.raises(
        DataError, match="box/.* and sam/.* are the same run under two names: both read .*box.zarr"
    ):
        open_grid(read_grid(grid_file(tmp_path, text)), tmp_path / "out")
    other = write_priors(
        tmp_path / "other.zarr", dataset, fingerprint="a" * 16, data={"fingerprint": "of others"}
    )
    text = TWO_PRIORS.format(root=mini_root, cache=tmp_path / "cache", sam=other)
    with pytest.raises(DataError, match="other.zarr: made for other annotations"):
        open_grid(read_grid(grid_file(tmp_path, text)), tmp_path / "out")


def test_runs_at_once_have_a_gpu_each(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    code = "import os, sys; open(sys.argv[1], 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])"

    def command(cell: Cell, out: Path, opened: Opened) -> list[str]:
        return [sys.executable, "-S", "-c", code, str(out / cell.name / "gpu")]

    for jobs, seen in ((1, {"4,5"}), (2, {"4", "5"})):
        out = tmp_path / f"jobs-{jobs}"
        run_grid(grid, out, jobs=jobs, quiet=True, command=command)
        assert {path.read_text() for path in out.rglob("gpu")} == seen


def test_a_cell_does_not_see_the_ctrl_c_of_a_terminal(grid: Grid, tmp_path: Path) -> None:
    """It would end without a checkpoint: it is a process group of its own, and told from here."""
    code = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpgrp() == os.getpid()))"

    def command(cell: Cell, out: Path, opened: Opened) -> list[str]:
        return [sys.executable, "-S", "-c", code, str(out / cell.name / "own")]

    run_grid(grid, tmp_path / "out", quiet=True, command=command)
    assert {path.read_text() for path in tmp_path.rglob("own")} == {"True"}


def test_runs_at_once_share_the_cpus_that_this_process_may_use(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    code = "import os, sys; open(sys.argv[1], 'w').write(os.environ['OMP_NUM_THREADS'])"

    def command(cell: Cell, out: Path, opened: Opened) -> list[str]:
        return [sys.executable, "-S", "-c", code, str(out / cell.name / "threads")]

    def threads(out: Path) -> set[str]:
        run_grid(grid, out, jobs=2, quiet=True, command=command)
        return {path.read_text() for path in out.rglob("threads")}

    assert threads(tmp_path / "shared") == {"3"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert threads(tmp_path / "too many") == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(tmp_path / "told") == {"5"}


def test_failures_are_listed_with_their_reason_and_stop_nobody(grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = run_grid(grid, out, quiet=True, command=light(a=2))
    assert answer["counts"] == {"failed": 2, "done": 2} and answer["own_unfinished"] == 2
    assert {cell["reason"] for cell in answer["unfinished"]} == {"this cell fails with 2"}
    assert {row["arm"] for row in answer["rows"]} == {"b"}
    assert describe_grid(grid, out)["cells"]["a/fraction-0.25/seed-1"]["state"] == "failed"
    mended = run_grid(grid, out, quiet=True, command=light())
    assert mended["counts"] == {"done": 4} and starts(out)["a/fraction-0.25/seed-1"] == 2
    assert not list(out.rglob(FAILED_FILE))
    (out / "b/fraction-0.25/seed-1" / FAILED_FILE).write_text('{"reason": "of a time when it was not done"}')
    assert run_grid(grid, out, quiet=True, command=light())["counts"] == {"done": 4}
    assert not list(out.rglob(FAILED_FILE))
    assert starts(out)["b/fraction-0.25/seed-1"] == 1


def test_a_reason_is_of_the_last_try(grid: Grid, tmp_path: Path) -> None:
    """Logs are written on: a process that said nothing has not said what the one before it did."""
    out = tmp_path / "out"
    run_grid(grid, out, quiet=True, command=light(a=2, b=2))
    mute = [sys.executable, "-S", "-c", "raise SystemExit(5)"]
    answer = run_grid(grid, out, quiet=True, command=lambda cell, out, opened: mute)
    assert {cell["reason"] for cell in answer["unfinished"]} == {"exit status 5"}
    for cell in grid.cells:
        assert "this cell fails with 2" in (out / cell.name / "cell.log").read_text(), "still to be read"


def test_a_reason_is_found_among_bytes_that_are_no_text(grid: Grid, tmp_path: Path) -> None:
    code = r"import sys; sys.stderr.buffer.write(b'\xff\xfe\nerror: no memory\n'); sys.exit(4)"
    answer = run_grid(
        grid, tmp_path / "out", quiet=True, command=lambda *_: [sys.executable, "-S", "-c", code]
    )
    assert {cell["reason"] for cell in answer["unfinished"]} == {"no memory"}


def test_a_cell_that_another_call_finishes_meanwhile_is_done(grid: Grid, tmp_path: Path) -> None:
    done = light()

    def command(cell: Cell, out: Path, opened: Opened) -> list[str]:
        return [part + f"sys.exit({BUSY})\n" if part == LIGHT else part for part in done(cell, out, opened)]

    answer = run_grid(grid, tmp_path / "out", quiet=True, command=command)
    assert answer["counts"] == {"done": 4} and answer["unfinished"] == []


def test_at_least_one_cell_runs_at_once(grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="jobs is 0, below 1"):
        run_grid(grid, tmp_path / "out", jobs=0, quiet=True, command=light())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        (-signal.SIGKILL, "failed", "killed by SIGKILL"),
        (STOPPED, "interrupted", "run again to go on"),
        (-signal.SIGTERM, "interrupted", "run again to go on"),
        (-signal.SIGINT, "interrupted", "run again to go on"),
        (BUSY, "busy", "another process has it"),
    ],
)
def test_how_a_cell_ended(grid: Grid, tmp_path: Path, status: int, state: str, reason: str) -> None:
    answer = run_grid(grid, tmp_path / "out", quiet=True, command=light(a=status))
    assert answer["counts"] == {state: 2, "done": 2}
    assert {(cell["state"], cell["reason"]) for cell in answer["unfinished"]} == {(state, reason)}


def test_a_cell_that_another_call_trains_is_not_called_interrupted(grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_grid(grid, out, quiet=True, command=light(a=STOPPED))
    name = "a/fraction-0.25/seed-1"
    trainer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "train"])
    try:
        owner = {"host": socket.gethostname(), "pid": trainer.pid}
        (out / name / "owner.json").write_text(json.dumps(owner))
        wait_until(lambda: describe_grid(grid, out)["cells"][name]["state"] == "busy")
    finally:
        trainer.kill()
        trainer.wait()
    assert describe_grid(grid, out)["cells"][name]["state"] == "interrupted"


def test_shares_are_disjoint_and_together_everything(grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run_grid(grid, out, only=(0, 3), quiet=True, command=light())
    assert first["counts"] == {"done": 2, "to do": 2} and first["own_unfinished"] == 0
    for share in (1, 2):
        last = run_grid(grid, out, only=(share, 3), quiet=True, command=light())
    assert last["counts"] == {"done": 4} and set(starts(out).values()) == {1}


def test_calls_that_end_at_once_leave_the_table_of_all_cells(grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with ThreadPoolExecutor(2) as pool:
        with locked(out / ".table.lock"):  # both have run their cells, and neither has looked at the other's
            calls = [
                pool.submit(run_grid, grid, out, only=(i, 2), quiet=True, command=light()) for i in (0, 1)
            ]
            wait_until(lambda: all((out / cell.name / "done.json").is_file() for cell in grid.cells))
            assert not (out / "table.json").exists()
        for call in calls:
            call.result()
    assert json.loads((out / "table.json").read_text())["counts"] == {"done": 4}


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/3", "a/b", "0/0", "1/2/3"])
def test_a_share_is_i_of_n(text: str) -> None:
    with pytest.raises(DataError, match="only is"):
        parse_share(text)
    assert parse_share("2/3") == (2, 3)


def test_a_folder_of_another_grid_is_not_taken_for_this_one(grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_grid(grid, out, quiet=True, command=light())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = read_grid(grid_file(tmp_path, grid.path.read_text().replace("steps=40", "steps=41")))
    cells = describe_grid(other, out)["cells"]
    assert [cell["state"] for cell in cells.values()] == ["done", "done", "failed", "failed"]
    assert "steps is 40 there, 41 now" in cells["b/fraction-0.25/seed-1"]["reason"]
    for only in ((0, 1), (0, 4)):  # a share without such a cell is refused as well
        with pytest.raises(
            DataError, match=r"out: 2 of 4 runs .*first b/fraction-0.25/seed-1 \(steps is 40 there"
        ):
            run_grid(other, out, only=only, quiet=True, command=light())
    with pytest.raises(DataError, match="2 of 4 runs .*another folder by --out"):
        plan_grid(other, out, 0)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_grid_names_all_its_runs_before_the_first_ends(grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_grid(grid, out, only=(3, 4), quiet=True, command=light())
    assert names_of(out) == [cell.name for cell in grid.cells] and names_of(tmp_path) == []
    assert json.loads((out / "grid.json").read_text())["labels"] == {"a": "a", "b": "b"}
    (out / "table.json").unlink()
    status = status_of(out)
    assert status["state"] == "unfinished" and status["progress"]["runs"] == "1 of 4 done"
    assert status["progress"]["cells"] == {
        "a/fraction-0.25/seed-1": "not begun",
        "a/fraction-0.25/seed-2": "not begun",
        "b/fraction-0.25/seed-1": "not begun",
        "b/fraction-0.25/seed-2": "done",
    }


def test_dry_run_starts_and_writes_nothing(grid: Grid, tmp_path: Path) -> None:
    plan = describe_grid(grid, tmp_path / "out")
    assert {cell["state"] for cell in plan["cells"].values()} == {"to do"} and len(plan["cells"]) == 4
    assert plan["cells"]["b/fraction-0.25/seed-2"]["changes"][1:] == ["steps=40", "fraction=0.25", "seed=2"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_cells_and_asks_to_be_started_again(
    grid: Grid, tmp_path: Path, how: signal.Signals
) -> None:
    """Ctrl-C as well, which is an exception here, and which the cells do not see for themselves.

    The table, which another call may be writing, is not waited for.
    """
    out = tmp_path / "out"
    out.mkdir()
    command = light(60.0)

    def once(*arguments: Any) -> list[str]:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), how))
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        return command(*arguments)

    before, started = signal.getsignal(how), time.monotonic()
    try:
        with locked(out / ".table.lock"), pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
            run_grid(grid, out, jobs=2, quiet=True, command=once)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert time.monotonic() - started < 40
    assert signal.getsignal(how) is before and len(starts(out)) <= 2
    if how == signal.SIGINT:
        assert stopped.type is KeyboardInterrupt and not list(out.rglob(FAILED_FILE))
        return
    assert isinstance(stopped.value, SystemExit) and stopped.value.code == STOPPED
    assert not list(out.rglob(FAILED_FILE)) and not (out / "table.json").exists()


def test_a_locked_cell_is_not_had_twice(tmp_path: Path) -> None:
    first = hold_lock(tmp_path / "run")
    assert first is not None and hold_lock(tmp_path / "run") is None
    os.close(first)
    second = hold_lock(tmp_path / "run")
    assert second is not None
    os.close(second)


def test_a_cell_is_scored_by_as_many_readers_as_it_is_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(ablate_cell, "train", lambda *arguments, **options: None)
    monkeypatch.setattr(
        ablate_cell,
        "evaluate_splits",
        lambda run, splits, **options: asked.append((splits, options["workers"])),
    )
    spec = {
        "run": str(tmp_path),
        "recipe": "embedded",
        "changes": ["runtime.workers=3"],
        "splits": {"val": "0", "testA": "1"},
    }
    ablate_cell.run_cell(spec)
    assert asked == [(["val", "testA"], 3)]


@pytest.mark.parametrize("locked_out", [True, False])
def test_the_process_of_a_cell_ends_by_what_became_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], locked_out: bool
) -> None:
    """A cell that another process has is not touched; input that cannot be used is no crash."""
    touched = []

    def unusable(spec: dict) -> None:
        touched.append(spec["run"])
        raise DataError("no such\ndata")

    monkeypatch.setattr(ablate_cell, "run_cell", unusable)
    monkeypatch.setattr(ablate_cell, "end_with_parent", lambda: None)
    monkeypatch.setattr(ablate_cell, "hold_lock", lambda run: None if locked_out else 0)
    monkeypatch.setattr(sys, "argv", ["ablate_cell", json.dumps({"run": str(tmp_path / "run")})])
    with pytest.raises(SystemExit) as ended:
        ablate_cell.main()
    assert (ended.value.code, touched) == ((BUSY, []) if locked_out else (2, [str(tmp_path / "run")]))
    assert capsys.readouterr().err == ("" if locked_out else "error: no such data\n")


# --- real cells --------------------------------------------------------------------------------------------------

REAL = """
reference = "supervised"
recipe = "embedded"
fractions = [0.25]
seeds = [1]
set = [
    "steps=8", "batch_labelled=2", "batch_unlabelled=2", "eval_every=0", "alarm.patience=0",
    "segmentor.weights=none", "segmentor.decoder_width=8", "segmentor.vision.image_size=48",
    "runtime.tensorboard=false", "runtime.checkpoint_every=2", "runtime.log_every=1",
    "data.root={root}/data", "cache_root={cache}",
]
[methods.supervised]
recipe = "supervised-embedded"
[methods.l2l]
[methods.diverged]
set = ["optim.muon.adam_lr=1e30", "optim.muon.lr=1e30", "optim.warmup_steps=0", "optim.grad_clip=0"]
"""


@pytest.fixture
def real(mini_root: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A grid over miniature data with a store that holds val too, and a module that fails where the LLM is touched."""
    dataset = load_refer(mini_root / "data", "refshapes", "unc")
    write_priors(tmp_path / "cache" / "refshapes.with-val.zarr", dataset, splits=("train", "val"))
    poison = tmp_path / "poison" / "vllm"
    poison.mkdir(parents=True)
    (poison / "__init__.py").write_text(
        f"open({str(tmp_path / 'touched')!r}, 'w').close()\nraise RuntimeError('the LLM was touched')\n"
    )
    return grid_file(tmp_path, REAL.format(root=mini_root, cache=tmp_path / "cache")), poison.parent


def start(grid: Path, poison: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{poison}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "ablate", str(grid), "--out", str(out), *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def is_free(run: Path) -> bool:
    with (run / LOCK_FILE).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.slow
def test_a_grid_survives_kill_and_ends_in_a_table_without_the_llm(
    real: tuple[Path, Path], tmp_path: Path
) -> None:
    out, run = tmp_path / "out", tmp_path / "out" / "supervised" / "fraction-0.25" / "seed-1"
    killed = start(*real, out)
    try:
        wait_until(lambda: (run / "config.json").is_file() or killed.poll() is not None)
    finally:
        killed.kill()
    assert killed.communicate() and killed.returncode == -signal.SIGKILL and not (out / "table.json").exists()
    wait_until(lambda: is_free(run))  # its cell has gone as well
    finished = start(*real, out, "--json")
    answer, said = finished.communicate(timeout=600)
    assert finished.returncode == 1, said[-3000:]  # one cell cannot be finished
    found = json.loads(answer)
    assert found["counts"] == {"done": 2, "failed": 1}, found["unfinished"]
    (failed,) = found["unfinished"]
    assert failed["cell"] == "diverged/fraction-0.25/seed-1" and "the loss is" in failed["reason"]
    (store,) = found["stores"]
    assert store["path"].endswith("refshapes.with-val.zarr") and list(store["arms"]) == ["l2l", "diverged"]
    assert found["prior"]["frozen prior alone"]["val"]["original"]["oiou"] > 0.3
    rows = {(r["arm"], r["frame"], r["metric"]): r for r in found["rows"]}
    scored = json.loads((run / "eval" / "val.json").read_text())
    assert rows["supervised", "original", "oiou"]["values"] == [scored["original"]["oiou"]]
    other = json.loads((out / "l2l" / "fraction-0.25" / "seed-1" / "eval" / "val.json").read_text())
    difference = other["original"]["oiou"] - scored["original"]["oiou"]
    assert rows["l2l", "original", "oiou"]["difference"] == pytest.approx(difference)
    assert not (tmp_path / "touched").exists()
    assert describe_grid(read_grid(real[0]), out)["cells"]["l2l/fraction-0.25/seed-1"]["state"] == "done"


def test_the_llm_trap_works(real: tuple[Path, Path], tmp_path: Path) -> None:
    code = "import vllm"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(real[1])}, capture_output=True
    )
    assert done.returncode != 0 and (tmp_path / "touched").exists()


def test_no_store_is_said_before_anything_starts(real: tuple[Path, Path], tmp_path: Path) -> None:
    text = real[0].read_text().replace(str(tmp_path / "cache"), str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no complete prior store"):
        run_grid(read_grid(grid_file(tmp_path, text)), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("seeds = [1]", 'seeds = [1]\nsplits = ["validation"]'),
            "splits: refshapes .* no split 'validation'",
        ),
        (
            ("[0.25]", "[0.25, 0.0001]"),
            r"supervised/fraction-0.0001/seed-1: labelled fraction .* no image at all",
        ),
        (("[0.25]", "[0.25, 1.0]"), "l2l/fraction-1/seed-1: every train image is labelled"),
        (
            ('"eval_every=0"', '"eval_every=2", "val_split=dev"'),
            "supervised/.*: val_split 'dev' is not one of",
        ),
        (
            ('"segmentor.weights=none"', '"segmentor.weight_parts=decoder"'),
            "supervised/.*: .*model.safetensors: .*decoder.* --set segmentor.weights=none",
        ),
    ],
)
def test_what_a_cell_cannot_read_is_said_before_anything_starts(
    real: tuple[Path, Path], tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    grid = read_grid(grid_file(tmp_path, real[0].read_text().replace(*change)))
    for call in (
        lambda: describe_grid(grid, tmp_path / "out"),
        lambda: run_grid(grid, tmp_path / "out", quiet=True),
    ):
        with pytest.raises(DataError, match=f"grid.toml: {message}"):
            call()
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_said_even_where_no_store_is_read(grid: Grid, tmp_path: Path) -> None:
    text = grid.path.read_text().replace("data.root=", "data.root=nowhere")
    with pytest.raises(DataError, match="nowhere"):
        describe_grid(read_grid(grid_file(tmp_path, text)), tmp_path / "out")
