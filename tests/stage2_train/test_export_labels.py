"""Exported pseudo-labels: other tools and our own reader see the same masks, of the unlabelled sentences alone."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from safetensors.torch import save_file

from shared.errors import DataError
from shared.image_pack_build import build_pack
from shared.masks import decode_segmentation
from shared.refer import load_refer
from shared.refer_check import check_refer
from shared.refer_layout import IMAGE_FOLDERS
from stage2_train import export_labels as module
from stage2_train.checkpoint import list_checkpoints, load_weights
from stage2_train.config import RuntimeConfig
from stage2_train.ema import EmaConfig
from stage2_train.export_labels import export_labels
from stage2_train.export_labels_partial import PARTIAL
from stage2_train.inputs import open_inputs
from stage2_train.method_facts import METHOD_FACTS
from stage2_train.methods import METHODS
from stage2_train.report.pseudo_labels import taught_by
from stage2_train.run_files import load_networks, read_run_config
from stage2_train.train import train
from tests.stage2_train.miniature import plain_config

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"batch": 4, "limit": 14, "quiet": True}
"""Three whole batches and a half one."""


@pytest.fixture(scope="module")
def exported(mini_run, tmp_path_factory):
    """Where the labels of the mini run lie, and what the export said."""
    out = tmp_path_factory.mktemp("labels")
    return out, export_labels(mini_run, out, quiet=True)


@pytest.fixture(scope="module")
def short(mini_run, tmp_path_factory):
    """The files of a short export that nothing interrupts."""
    out = tmp_path_factory.mktemp("short")
    export_labels(mini_run, out, **SHORT)
    return files_of(out)


@pytest.fixture
def begun(mini_run, tmp_path, monkeypatch):
    """Where a short export has made all its labels, and was interrupted before it wrote its files."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_write", interrupt)
        export_labels(mini_run, tmp_path / "out", **SHORT)
    return tmp_path / "out" / "refshapes-pseudo" / PARTIAL


@pytest.fixture
def made(monkeypatch):
    """Sentences that labels are made for, in order."""
    seen, plain = [], module._annotation

    def noted(pseudo, part, index, fuses):
        seen.append(pseudo.samples[index].sample_id)
        return plain(pseudo, part, index, fuses)

    monkeypatch.setattr(module, "_annotation", noted)
    return seen


def interrupt(*arguments):
    raise KeyboardInterrupt


def files_of(out):
    """The bytes of all files in the folder of the labels, by name."""
    return {path.name: path.read_bytes() for path in (out / "refshapes-pseudo").iterdir()}


def coco_of(folder):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / "refshapes-pseudo" / "instances.json"))


def test_every_unlabelled_sentence_once_and_no_labelled_one(exported, mini_run):
    out, answer = exported
    split = open_inputs(read_run_config(mini_run)).split
    wanted = [sample for ref in split.unlabelled for sample in ref]
    dataset = load_refer(out, "refshapes-pseudo", "unc")
    assert [(s.sent_id, s.expression, s.image_id, s.split) for s in dataset.samples()] == [
        (s.sent_id, s.expression, s.image_id, "train") for s in sorted(wanted, key=lambda s: s.sent_id)
    ]
    assert answer["num"] == len(wanted) and not set(dataset.train_image_ids()) & set(split.image_ids)
    assert dataset.image(dataset.samples()[0]).size == (
        dataset.samples()[0].width,
        dataset.samples()[0].height,
    )


def test_pycocotools_and_our_reader_agree(exported):
    out, _ = exported
    coco, dataset = coco_of(out), load_refer(out, "refshapes-pseudo", "unc")
    for sample in dataset.samples():
        row, mask = coco.anns[sample.ann_id], dataset.mask(sample)
        np.testing.assert_array_equal(coco.annToMask(row).astype(bool), mask)
        assert row["area"] == mask.sum() and row["expression"] == sample.expression
        x0, y0, x1, y1 = dataset.box_xyxy_px(sample).tolist()
        assert row["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        ignored = decode_segmentation(row["ignored"], sample.height, sample.width)
        assert row["ignored_area"] == ignored.sum() and row["accepted_area"] == (~ignored).sum()
        assert row["score"] >= 0.5 if row["area"] else row["score"] == 0
    report = check_refer(out, "refshapes-pseudo", "unc")
    assert {problem.kind for problem in report.problems} <= {"mask of no area"}


def test_the_source_says_whether_there_was_a_prior(exported, mini_run):
    out, answer = exported
    inputs = open_inputs(read_run_config(mini_run))
    for row in coco_of(out).anns.values():
        _, has_prior = inputs.priors.read([row["sample_id"]])
        assert row["source"] == ("prediction+prior" if has_prior[0] else "prediction")
    assert answer["sources"]["prediction"] > 0 and answer["sources"]["prediction+prior"] > 0


def test_the_batch_changes_nothing(exported, mini_run, tmp_path):
    out, _ = exported
    again = export_labels(mini_run, tmp_path, batch=3, limit=7, quiet=True)
    assert again["num"] == 7
    for row in coco_of(tmp_path).anns.values():
        one = coco_of(out).anns[row["id"]]
        size = row["segmentation"]["size"]
        masks = [decode_segmentation(r["segmentation"], *size) for r in (row, one)]
        assert (masks[0] != masks[1]).mean() < 0.01 and row["sample_id"] == one["sample_id"]


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("supervised", "l2l")])
def test_other_methods_export_what_they_teach(mini_root, tmp_path, method):
    """Those too that read candidates or weak labels."""
    config = plain_config(mini_root, method, steps=1, runtime=RuntimeConfig(tensorboard=False))
    if not config.uses_store:
        config = dataclasses.replace(config, store="of no use, and not there")
    train(config, tmp_path / "run", quiet=True)
    answer = export_labels(tmp_path / "run", tmp_path / "out", limit=4, quiet=True)
    reads_priors = METHOD_FACTS[method].reads_prior
    assert answer["num"] == 4 and set(answer["sources"]) <= {
        "prediction",
        *(["prediction+prior"] if reads_priors else []),
    }


def test_the_teacher_makes_the_labels_whichever_network_is_exported(mini_root, tmp_path):
    """The same training, so the same labels; without its checkpoint the teacher is gone, and nobody stands in."""
    rows = {}
    for export in (True, False):
        config = plain_config(
            mini_root,
            "fixmatch",
            steps=3,
            ema=EmaConfig(decay=0.9, teacher=True, export=export),
            runtime=RuntimeConfig(tensorboard=False),
        )
        run = tmp_path / f"run-{export}"
        train(config, run, quiet=True)
        export_labels(run, tmp_path / f"{export}", limit=4, quiet=True)
        rows[export] = list(coco_of(tmp_path / f"{export}").anns.values())
    assert rows[True] == rows[False]
    taught = [[one.weak_HW.tobytes() for one in taught_by(tmp_path / f"run-{export}", 4)] for export in rows]
    assert taught[0] == taught[1]
    (last,) = list_checkpoints(run / "checkpoints")
    own = load_weights(last, "ema")
    earlier = Path(shutil.copytree(last, last.with_name("step_00000001")))
    save_file({name: torch.zeros_like(value) for name, value in own.items()}, earlier / "ema.safetensors")
    assert list_checkpoints(run / "checkpoints") == [earlier, last]
    teacher = load_networks(run, read_run_config(run)).teacher.state_dict()
    assert all(torch.equal(teacher[name], value) for name, value in own.items())
    shutil.rmtree(earlier)
    next(run.glob("checkpoints/*/ema.safetensors")).unlink()
    with pytest.raises(DataError, match="checkpoints: the averaged teacher, .*, is gone"):
        export_labels(run, tmp_path / "none", quiet=True)
    assert not (tmp_path / "none").exists()


def test_a_link_to_other_images_is_refused_before_anything_is_made(exported, mini_run, tmp_path):
    """Names of files may coincide in two data sets; a link that leads nowhere is of data that were moved."""
    out, _ = exported
    (tmp_path / "images").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(DataError, match=f"leads to .*elsewhere, not to {(out / 'images').resolve()}"):
        export_labels(mini_run, tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    (tmp_path / "images").unlink()
    (tmp_path / "images").mkdir()
    export_labels(mini_run, tmp_path, limit=2, quiet=True)
    assert not (tmp_path / "images").is_symlink()


def test_labels_of_a_packed_set_have_its_images(mini_run, mini_root, tmp_path):
    """Also where the loose files are gone."""
    data = shutil.copytree(mini_root / "data", tmp_path / "data")
    names = sorted({sample.file_name for sample in load_refer(data, "refshapes", "unc").samples()})
    build_pack(data, names, IMAGE_FOLDERS, quiet=True)
    shutil.rmtree(data / "images")
    for _ in range(2):  # the second finds the links of the first
        export_labels(mini_run, tmp_path / "out", limit=2, root=str(data), quiet=True)
        labels = load_refer(tmp_path / "out", "refshapes-pseudo", "unc")
        assert labels.image(labels.samples()[0]).size[0] == labels.samples()[0].width
        assert not (tmp_path / "out" / "images").exists()
        shutil.rmtree(tmp_path / "out" / "refshapes-pseudo")


def test_a_file_in_the_place_of_the_folder_is_named_before_any_label_is_made(mini_run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "iterate", None)
    (tmp_path / "out").write_text("")
    with pytest.raises(
        DataError, match="out/refshapes-pseudo: cannot write the labels: .*choose another folder"
    ):
        export_labels(mini_run, tmp_path / "out", limit=1, quiet=True)


def test_an_export_killed_in_the_middle_ends_with_the_same_files(mini_run, tmp_path, short, made):
    """A process of its own that kills itself in the middle of writing its third batch."""
    lines = (
        "import os, signal, sys",
        "import stage2_train.export_labels as job",
        "append, calls = job.append, []",
        "def killing(file, records):",
        "    calls.append(records)",
        "    append(file, records[:1] if len(calls) == 3 else records)",
        "    if len(calls) == 3:",
        '        file.write(b\'{"id": 10, "image_id"\')',
        "        file.flush()",
        "        os.kill(os.getpid(), signal.SIGKILL)",
        "job.append = killing",
        "job.export_labels(*sys.argv[1:], batch=4, limit=14, quiet=True)",
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", "\n".join(lines), str(mini_run), str(out)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    left = files_of(out)
    assert left.keys() == {PARTIAL} and len(left[PARTIAL].splitlines()) == 1 + 9 + 1
    partial = out / "refshapes-pseudo" / ".instances.json.elsewhere-1-00000000.partial"
    partial.write_text("")
    os.utime(partial, (0, 0))
    answer = export_labels(mini_run, out, **SHORT)
    assert answer["num"] == 14 and len(made) == 6
    assert files_of(out) == short


def test_an_export_goes_on_wherever_a_kill_has_torn_it(mini_run, begun, short, made):
    """Also where nothing is left to do but to write the files, and where these are written already."""
    whole, out = begun.read_bytes(), begun.parents[1]
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    assert len(ends) == 1 + 14
    cuts = {0: 0, ends[0] - 1: 0, ends[3] + 9: 0, ends[4]: 4, ends[14] - 1: 12, ends[14]: 14}
    for cut, num_kept in cuts.items():
        begun.write_bytes(whole[:cut])
        del made[:]
        export_labels(mini_run, out, **SHORT)  # beside the files of the cut before
        assert len(made) == 14 - num_kept, cut
        assert files_of(out) == short, cut


def test_progress_counts_what_was_taken_over(mini_run, begun, capsys):
    lines = begun.read_bytes().splitlines(keepends=True)
    begun.write_bytes(b"".join(lines[:9]))
    export_labels(mini_run, begun.parents[1], **{**SHORT, "quiet": False})
    assert "labels: 4/4 batches (100%)" in capsys.readouterr().err
    begun.write_bytes(b"".join(lines[:9]) + b"[]\n" + b"".join(lines[10:]))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "append", interrupt)
        export_labels(mini_run, begun.parents[1], **{**SHORT, "quiet": False})
    assert "labels: 2/4 batches (50%)" in capsys.readouterr().err
    assert begun.read_bytes() == b"".join(lines[:9])


def test_what_another_export_has_begun_is_refused_and_kept(mini_run, begun, tmp_path, short, made):
    before, out = begun.read_bytes(), begun.parents[1]
    del made[:]
    for change in ({"batch": 7}, {"limit": 0}):
        with pytest.raises(DataError, match=f"{PARTIAL}: was begun with --batch 4 --limit 14; give these"):
            export_labels(mini_run, out, **{**SHORT, **change})
    run = shutil.copytree(mini_run, tmp_path / "l2l")
    with (run / "model" / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=f"{PARTIAL}: holds labels of another run; choose another folder"):
        export_labels(run, out, **SHORT)
    assert files_of(out) == {PARTIAL: before} and not made
    begun.unlink()
    export_labels(run, out, **SHORT)
    assert len(made) == 14 and files_of(out) == short


def test_data_that_were_moved_since_go_on(mini_run, mini_root, begun, tmp_path, short, made):
    data = shutil.copytree(mini_root / "data", tmp_path / "data")
    run = shutil.copytree(mini_run, tmp_path / "moved" / "l2l")
    (begun.parents[1] / "images").unlink()
    del made[:]
    export_labels(run, begun.parents[1], root=str(data), **SHORT)
    assert not made and files_of(begun.parents[1]) == short


def test_readers_in_processes_of_their_own_change_nothing(mini_run, tmp_path, short):
    run = shutil.copytree(mini_run, tmp_path / "l2l")
    record = json.loads((run / "config.json").read_text())
    record["config"]["runtime"]["workers"] = 1
    (run / "config.json").write_text(json.dumps(record))
    export_labels(run, tmp_path / "out", **SHORT)
    assert files_of(tmp_path / "out") == short


def test_one_of_several_processes_is_refused(mini_run, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="export-labels is the work of one process, and WORLD_SIZE is 2"):
        export_labels(mini_run, tmp_path / "out", **SHORT)
    assert not (tmp_path / "out").exists()


def test_refusals(exported, mini_run, mini_root, tmp_path):
    with pytest.raises(DataError, match="holds labels already"):
        export_labels(mini_run, exported[0])
    run = shutil.copytree(mini_run, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    record["config"]["method"] = "supervised"
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="method supervised makes no pseudo-labels"):
        export_labels(run, tmp_path / "out")
    shutil.copy(mini_run / "config.json", run / "config.json")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(DataError, match="no checkpoint, so the state of method l2l"):
        export_labels(run, tmp_path / "out")
    shutil.rmtree(run / "model")
    with pytest.raises(DataError, match="holds no finished model"):
        export_labels(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
