"""Prediction of a file's pairs: bad lines cost themselves alone, and a job goes on where a kill left it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import DataError
from shared.images import image_size_hw
from shared.locks import locked
from shared.masks import decode_segmentation
from stage2_train import predict_lines
from stage2_train.predict import Predictor, predict_one
from stage2_train.predict_lines import predict_jsonl

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pairs(tmp_path):
    """Five pairs on two images of different shapes, one of them turned."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (30, 45, 3), dtype=np.uint8)).save(folder / "turned.jpg", exif=exif)
    texts = ["red star", "blue ring left of the star", "größter Kreis / oben", "???", "red star"]
    names = ["wide.png", "turned.jpg", "wide.png", "turned.jpg", "turned.jpg"]
    rows = [
        json.dumps({"image": image, "expression": text}) for image, text in zip(names, texts, strict=True)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(["# what to look for", *rows]))
    return folder / "pairs.jsonl"


@pytest.fixture
def asked(monkeypatch):
    """Expressions that the network is asked, in order."""
    seen = []
    plain = Predictor.__call__

    def call(self, images, expressions):
        seen.extend(expressions)
        return plain(self, images, expressions)

    monkeypatch.setattr(Predictor, "__call__", call)
    return seen


def rows_of(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_bytes().splitlines()]


def edit(pairs, number, **fields):
    """Change fields of one line; None takes one away."""
    lines = pairs.read_text().split("\n")
    row = {**json.loads(lines[number - 1]), **fields}
    lines[number - 1] = json.dumps({name: value for name, value in row.items() if value is not None})
    pairs.write_text("\n".join(lines))


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_batches_from_a_file(mini_run, pairs, tmp_path, batch):
    answer = predict_jsonl(mini_run, pairs, tmp_path / "out", batch=batch)
    rows = rows_of(tmp_path / "out")
    assert [row["line"] for row in rows] == [2, 3, 4, 5, 6]
    assert (answer["num"], answer["num_kept"], answer["num_failed"]) == (5, 0, 0)
    assert answer["num_empty"] == sum(row["area_px"] == 0 for row in rows)
    assert [row["rle"]["size"] for row in rows] == [[40, 60], [45, 30], [40, 60], [45, 30], [45, 30]]
    assert len({row["files"]["mask"] for row in rows}) == 5
    for row in rows:
        mask = np.asarray(Image.open(row["files"]["mask"])) == 255
        np.testing.assert_array_equal(mask, decode_segmentation(row["rle"], *row["rle"]["size"]))
        assert image_size_hw(Path(row["files"]["overlay"])) == mask.shape
        assert json.loads(Path(row["files"]["mask"].replace(".mask.png", ".json")).read_text()) == row
        if not row["area_px"]:
            assert row["confidence"] is None


def test_progress_and_the_first_lines_that_failed_are_said(mini_run, pairs, tmp_path, capsys):
    """The first few by line with the reason, then how many more and where all are; nothing if it is to be quiet."""
    pairs.write_text(pairs.read_text() + "\n{}" * 7)
    assert predict_jsonl(mini_run, pairs, tmp_path / "out")["num_failed"] == 7
    said = capsys.readouterr().err.splitlines()
    failed = [line for line in said if line.startswith(f"{pairs}, line ")]
    assert [line.split(": ")[0].rpartition(" ")[2] for line in failed] == ["7", "8", "9", "10", "11"]
    assert "is None, not a text" in failed[0]
    assert (
        f"and 2 more lines that failed: all have their `error` in {tmp_path / 'out' / 'predictions.jsonl'}"
        in said
    )
    assert any(line.startswith("predict: 12/12 pairs (100%)") for line in said)
    predict_jsonl(mini_run, pairs, tmp_path / "out", quiet=True)
    assert not [line for line in capsys.readouterr().err.splitlines() if "line " in line or "pairs" in line]


def test_a_line_that_fails_costs_itself_alone_and_is_tried_again(mini_run, pairs, tmp_path, asked):
    whole = tmp_path / "whole"
    predict_jsonl(mini_run, pairs, whole, batch=1)
    wide = (pairs.parent / "wide.png").read_bytes()
    (pairs.parent / "wide.png").write_bytes(b"torn")
    edit(pairs, 3, id="b-3")
    pairs.write_text(pairs.read_text() + '\n{"image": "turned.jpg"\n{"image": "turned.jpg", "id": 8}\n')
    del asked[:]
    answer = predict_jsonl(mini_run, pairs, tmp_path / "out", batch=2)
    assert (answer["num"], answer["num_failed"], len(asked)) == (7, 4, 3)
    rows = rows_of(tmp_path / "out")
    assert [(row["line"], row.get("id"), "error" in row) for row in rows] == [
        (2, None, True),
        (3, "b-3", False),
        (4, None, True),
        (5, None, False),
        (6, None, False),
        (7, None, True),
        (8, 8, True),
    ]
    assert "wide.png: image cannot be read" in rows[0]["error"] and rows[0]["expression"] == "red star"
    assert rows[5].keys() == {"line", "error"} and rows[5]["error"].startswith("not JSON: ")
    assert rows[6] == {"line": 8, "id": 8, "error": "'expression' is None, not a text"}

    (pairs.parent / "wide.png").write_bytes(wide)
    pairs.write_text("\n".join(pairs.read_text().splitlines()[:6]))
    edit(pairs, 3, id=None)
    del asked[:]
    answer = predict_jsonl(mini_run, pairs, tmp_path / "out", batch=1)
    assert (answer["num_kept"], answer["num_failed"], len(asked)) == (2, 0, 3)
    mended = [{k: v for k, v in row.items() if k != "files"} for row in rows_of(tmp_path / "out")]
    assert [row["line"] for row in mended] == [2, 3, 4, 5, 6]
    for row, other in zip(mended, rows_of(whole), strict=True):
        assert row["rle"]["size"] == other["rle"]["size"] and row["image_hash"] == other["image_hash"]


def test_a_job_goes_on_wherever_a_kill_has_torn_it(mini_run, pairs, tmp_path, asked):
    out = tmp_path / "out"
    predict_jsonl(mini_run, pairs, out, batch=1)
    path = out / "predictions.jsonl"
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for cut in sorted(
        {0, 1, ends[0] - 1, ends[0], ends[2] + 7, ends[3] - 1, ends[3], len(whole) - 1, len(whole)}
    ):
        path.write_bytes(whole[:cut])
        del asked[:]
        answer = predict_jsonl(mini_run, pairs, out, batch=1)
        num_whole = sum(end <= cut for end in ends)
        assert (answer["num_kept"], len(asked)) == (num_whole, 5 - num_whole), cut
        assert path.read_bytes() == whole, cut
    assert not list(out.glob(".*.partial"))


def test_a_job_killed_in_the_middle_goes_on(mini_run, pairs, tmp_path, asked):
    """A process of its own that kills itself between the files of the third line and its row."""
    out = tmp_path / "out"
    lines = (
        "import os, signal, sys",
        "import stage2_train.predict_lines as job",
        "write, calls = job.write_prediction, []",
        "def killing(*arguments):",
        "    row = write(*arguments)",
        "    calls.append(row)",
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)",
        "    return row",
        "job.write_prediction = killing",
        "job.predict_jsonl(*sys.argv[1:], batch=2)",
    )
    command = [sys.executable, "-c", "\n".join(lines), str(mini_run), str(pairs), str(out)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [row["line"] for row in rows_of(out)] == [2, 3]
    answer = predict_jsonl(mini_run, pairs, out, batch=2)
    assert (answer["num_kept"], len(asked)) == (2, 3)
    assert [row["line"] for row in rows_of(out)] == [2, 3, 4, 5, 6]
    assert answer["num_empty"] == sum(row["area_px"] == 0 for row in rows_of(out))


CHANGES = {
    "nothing": (lambda run, pairs, out: None, 0),
    "expression": (lambda run, pairs, out: edit(pairs, 3, expression="other words"), 1),
    "image name": (lambda run, pairs, out: edit(pairs, 3, image="wide.png"), 1),
    "id": (lambda run, pairs, out: edit(pairs, 3, id=7), 1),
    "image bytes": (
        lambda run, pairs, out: Image.new("RGB", (60, 40)).save(pairs.parent / "wide.png"),
        2,
    ),
    "image file moved aside": (lambda run, pairs, out: (pairs.parent / "wide.png").unlink(), 0),
    "a line inserted": (lambda run, pairs, out: pairs.write_text("\n" + pairs.read_text()), 5),
    "a mask": (lambda run, pairs, out: next(out.glob("000004.*.mask.png")).unlink(), 1),
    "an overlay": (lambda run, pairs, out: next(out.glob("000004.*.overlay.png")).unlink(), 1),
    "a JSON file": (lambda run, pairs, out: next(out.glob("000004.*.json")).unlink(), 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_longer_the_answer_is_asked_again(mini_run, pairs, tmp_path, asked, change):
    run, out = shutil.copytree(mini_run, tmp_path / "run"), tmp_path / "out"
    predict_jsonl(run, pairs, out)
    apply, num_asked = CHANGES[change]
    apply(run, pairs, out)
    del asked[:]
    answer = predict_jsonl(run, pairs, out)
    gone = 2 if change == "image file moved aside" else 0
    assert (len(asked), answer["num_failed"], answer["num_kept"]) == (num_asked, gone, 5 - num_asked - gone)
    assert [row["line"] for row in rows_of(out)] == [n + (change == "a line inserted") for n in range(2, 7)]


def test_predictions_of_another_file_or_network_are_not_lost(mini_run, pairs, tmp_path, asked):
    out, other = tmp_path / "out", tmp_path / "pairs" / "other.jsonl"
    predict_jsonl(mini_run, pairs, out)
    before = (out / "predictions.jsonl").read_bytes()
    other.write_text('{"image": "wide.png", "expression": "green star"}\n')
    with pytest.raises(
        DataError, match=r"predictions\.jsonl: holds predictions of .*pairs\.jsonl; choose another"
    ):
        predict_jsonl(mini_run, other, out)
    run = shutil.copytree(mini_run, tmp_path / "run")
    with (run / "model" / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"predictions\.jsonl: holds predictions of another network; choose"):
        predict_jsonl(run, pairs, out)
    assert (out / "predictions.jsonl").read_bytes() == before and not list(out.glob(".*.partial"))
    del asked[:]
    moved = shutil.copytree(pairs.parent, tmp_path / "moved")
    assert predict_jsonl(mini_run, moved / "pairs.jsonl", out)["num_kept"] == 5 and not asked
    (out / "predictions.jsonl").unlink()
    assert predict_jsonl(mini_run, other, out)["num_kept"] == 0 and asked == ["green star"]


def test_two_jobs_at_once_would_write_the_same_rows(mini_run, pairs, tmp_path, asked):
    out = tmp_path / "out"
    out.mkdir()
    with (
        locked(out / ".predict.lock"),
        pytest.raises(DataError, match="predict.lock: held by another process, which writes here"),
    ):
        predict_jsonl(mini_run, pairs, out, quiet=True)
    assert not (out / "predictions.jsonl").exists() and not asked
    predict_jsonl(mini_run, pairs, out, quiet=True)
    assert len(rows_of(out)) == 5


def test_rows_of_strange_shapes_are_dropped(mini_run, pairs, tmp_path, asked):
    out = tmp_path / "out"
    predict_jsonl(mini_run, pairs, out)
    first = rows_of(out)[0]
    strange = [[], 3, {"line": [2]}, {**first, "files": ["x"]}, {**first, "files": {"mask": 4}}, first, first]
    path = out / "predictions.jsonl"
    path.write_text("not JSON\n" + "".join(json.dumps(row) + "\n" for row in strange))
    del asked[:]
    assert predict_jsonl(mini_run, pairs, out)["num_kept"] == 1 and len(asked) == 4
    assert [row["line"] for row in rows_of(out)] == [2, 3, 4, 5, 6]


def test_several_processes_would_write_the_same_rows(mini_run, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(DataError, match="predict --jsonl is the work of one process, and WORLD_SIZE is 4"):
        predict_jsonl(mini_run, pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_overlays(mini_run, pairs, tmp_path, asked):
    out = tmp_path / "out"
    predict_jsonl(mini_run, pairs, out, with_overlay=False)
    assert not list(out.glob("*.overlay.png")) and len(list(out.glob("*.mask.png"))) == 5
    assert all(row["files"].keys() == {"mask"} for row in rows_of(out))
    assert predict_jsonl(mini_run, pairs, out)["num_kept"] == 0
    assert predict_jsonl(mini_run, pairs, out, with_overlay=False)["num_kept"] == 5
    answer = predict_one(mini_run, pairs.parent / "wide.png", "star", tmp_path / "one", with_overlay=False)
    assert answer["files"].keys() == {"mask"} and len(list((tmp_path / "one").iterdir())) == 2


def test_pairs_that_are_called_alike_have_files_of_their_own(mini_run, pairs, tmp_path):
    out = tmp_path / "out"
    for place in ("a/x.png", "b/x.png", "b/x.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copyfile(pairs.parent / "wide.png", tmp_path / place)
    files = [
        predict_one(mini_run, tmp_path / place, text, out)["files"]["mask"]
        for place in ("a/x.png", "b/x.png", "b/x.jpg")
        for text in ("red star", "Red: star", "???", "größter" * 40)
    ]
    assert len(set(files)) == 12 == len(list(out.glob("*.mask.png")))
    assert (
        predict_one(mini_run, tmp_path / "a" / ".." / "a" / "x.png", "red star", out)["files"]["mask"]
        in files
    )
    Image.new("RGB", (60, 40)).save(tmp_path / "b" / "x.png")
    for place in ("a", "b"):
        (tmp_path / place / "own.jsonl").write_text('{"image": "x.png", "expression": "red star"}\n')
        (out / "predictions.jsonl").unlink(missing_ok=True)
        predict_jsonl(mini_run, tmp_path / place / "own.jsonl", out)
    assert len(list(out.glob("000001.*.mask.png"))) == 2


def test_what_no_line_can_be_blamed_for_is_refused(mini_run, pairs, tmp_path):
    with pytest.raises(DataError, match="neither a finished run nor a model's folder"):
        predict_jsonl(tmp_path, pairs, tmp_path / "out")
    with pytest.raises(DataError, match="none.jsonl: not found"):
        predict_jsonl(mini_run, tmp_path / "none.jsonl", tmp_path / "out")
    pairs.write_text("# nothing\n")
    with pytest.raises(DataError, match="holds no line"):
        predict_jsonl(mini_run, pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    pairs.write_text('{"image": "x.png", "expression": "red star"}\n')
    with pytest.raises(DataError, match="file: cannot write the predictions: .*choose another folder"):
        predict_jsonl(mini_run, pairs, tmp_path / "file")


def test_a_disk_that_fills_up_is_said_plainly(mini_run, pairs, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(predict_lines, "_encoded", full)
    with pytest.raises(
        DataError, match="cannot write the predictions: No space left on device; those written are"
    ):
        predict_jsonl(mini_run, pairs, tmp_path / "out")
