"""Prediction: the network's own mask at the image's size, in every file alike, alone or in batches."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.errors import DataError
from shared.masks import decode_segmentation
from shared.refer import load_refer
from stage2_train.evaluate import evaluate_run
from stage2_train.predict import OVERLAY_RGB, Prediction, Predictor, file_stem, overlay, predict_one
from stage2_train.segmentor import ReferringSegmentor


def test_one_image_agrees_with_the_evaluation(mini_run, mini_root, tmp_path):
    run = shutil.copytree(mini_run, tmp_path / "run")
    evaluate_run(run, "val", batch=1)
    rows = [json.loads(line) for line in (run / "eval" / "val.jsonl").read_text().splitlines()]
    data = load_refer(mini_root / "data", "refshapes", "unc")
    sample = data.samples("val")[0]
    answer = predict_one(run, data.image_path(sample), sample.expression, tmp_path / "out")
    assert answer["rle"] == rows[0]["pred_rle"]
    mask = decode_segmentation(answer["rle"], sample.height, sample.width)
    assert mask.any() and answer["area_px"] == mask.sum() and 0.5 < answer["confidence"] <= 1
    np.testing.assert_array_equal(np.asarray(Image.open(answer["files"]["mask"])) == 255, mask)
    shown, plain = np.asarray(Image.open(answer["files"]["overlay"])), np.asarray(data.image(sample))
    np.testing.assert_array_equal((shown != plain).any(-1) | mask, mask)
    (written,) = (tmp_path / "out").glob("*.json")
    assert json.loads(written.read_text()) == answer
    x, y, width, height = answer["box_xywh_px"]
    assert mask[int(y) : int(y + height), int(x) : int(x + width)].sum() == mask.sum()


def test_long_expressions_that_begin_alike_have_files_of_their_own(mini_run, mini_root, tmp_path):
    data = load_refer(mini_root / "data", "refshapes", "unc")
    image = data.image_path(data.samples("val")[0])
    for end in ("girl", "boy", "boy"):
        predict_one(mini_run, image, f"the small brown dog that is sitting next to the {end}", tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_model_folder_alone_is_enough(mini_run, tmp_path):
    shutil.copytree(mini_run / "model", tmp_path / "model")
    image = Image.new("RGB", (50, 30), (200, 20, 20))
    (own,) = Predictor.from_pretrained(tmp_path / "model")([image], ["red square"])
    (same,) = Predictor.from_pretrained(mini_run)([image], ["red square"])
    np.testing.assert_array_equal(own.mask_hw, same.mask_hw)
    assert own.mask_hw.shape == (30, 50) and own.confidence == same.confidence


def test_the_probability_has_the_size_of_the_photo_and_cuts_to_the_mask(mini_run):
    predictor = Predictor.from_pretrained(mini_run, device="cpu")
    array = np.random.default_rng(1).integers(0, 256, (70, 110, 3), dtype=np.uint8)
    found, same = predictor([array, Image.fromarray(array)], ["red square", "red square"])
    assert found.prob_hw.shape == found.mask_hw.shape == (70, 110) and found.prob_hw.dtype == np.float32
    assert 0 <= found.prob_hw.min() and found.prob_hw.max() <= 1
    np.testing.assert_array_equal(found.prob_hw >= 0.5, found.mask_hw)
    assert found.mask_hw.any() and found.confidence == pytest.approx(found.prob_hw[found.mask_hw].mean())
    np.testing.assert_array_equal(found.prob_hw, same.prob_hw)
    assert predictor([], []) == []


@pytest.mark.parametrize(
    ("images", "expressions", "message"),
    [
        (Image.new("RGB", (9, 9)), "star", "takes a list of images and a list of as many expressions"),
        ([Image.new("RGB", (9, 9))], "star", "a list of as many expressions"),
        ([Image.new("RGB", (9, 9))], ["star", "dot"], r"1 image\(s\) and 2 expression\(s\)"),
        ([Image.new("RGB", (9, 9))], [" "], r"expressions\[0\] is ' ', not a text"),
        (
            [Image.new("RGB", (9, 9)), Image.new("L", (9, 9))],
            ["star"] * 2,
            r"images\[1\] has mode L, not RGB",
        ),
        ([np.zeros((3, 9, 8), np.uint8)], ["star"], r"is an array uint8 \[3, 9, 8\], not uint8 \[h, w, 3\]"),
        ([np.zeros((9, 8, 3))], ["star"], r"images\[0\] is an array float64 \[9, 8, 3\]"),
        (
            ["new.jpg"],
            ["star"],
            r"images\[0\] is a str, not an image: read a file by shared.images.read_image",
        ),
    ],
)
def test_a_predictor_says_what_it_takes(mini_run, images, expressions, message):
    with pytest.raises(DataError, match=message):
        Predictor.from_pretrained(mini_run)(images, expressions)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_named(mini_run, device):
    with pytest.raises(DataError, match=f"device '{device}' cannot be used: "):
        Predictor.from_pretrained(mini_run, device=device)


def test_refusals_name_the_culprit(mini_run, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match="the expression is blank"):
        predict_one(mini_run, tmp_path / "wide.png", "  ", tmp_path)
    with pytest.raises(DataError, match="absent.png: image cannot be read"):
        predict_one(mini_run, tmp_path / "absent.png", "star", tmp_path)
    with pytest.raises(DataError, match="neither a finished run nor a model's folder"):
        predict_one(tmp_path, tmp_path / "wide.png", "star", tmp_path / "out")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(DataError, match=f"{out}: cannot write a prediction: .*choose another folder"):
            predict_one(mini_run, tmp_path / "wide.png", "star", out)


def test_a_full_disk_is_said_plainly(mini_run, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    Image.new("RGB", (60, 40)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match="cannot write a prediction: No space left on device.*make room"):
        predict_one(mini_run, tmp_path / "wide.png", "star", tmp_path / "out")


def test_the_box_is_a_corner_and_a_size():
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:15, 7:10] = True
    record = Prediction(mask_hw=mask, confidence=0.9, margin_HW=np.zeros((4, 4), np.float32)).record("a", "b")
    assert record["box_xywh_px"] == [7, 5, 3, 10] and record["area_px"] == 30


def test_one_half_is_foreground(mini_run, monkeypatch):
    """As in the evaluation."""
    predictor = Predictor.from_pretrained(mini_run)
    monkeypatch.setattr(
        predictor.model, "forward", lambda image, ids, mask: torch.zeros(len(image), 2, 32, 32)
    )
    (found,) = predictor([Image.new("RGB", (50, 30))], ["red square"])
    assert found.mask_hw.all() and found.confidence == 0.5


def test_a_network_that_is_being_trained_predicts_without_dropout(mini_run):
    model = ReferringSegmentor.from_pretrained(mini_run / "model").train()
    assert not Predictor(model).model.training


def test_files_are_named_after_the_image_itself(tmp_path, monkeypatch):
    """However its path is spelled, and not after another of that name."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    own, other = file_stem(Path("a.png"), "star"), file_stem(Path("other/a.png"), "star")
    assert own == file_stem(tmp_path / "a.png", "star") == file_stem(Path("other/../a.png"), "star") != other
    assert own != file_stem(Path("a.png"), "Star") and own.startswith("a.star.")


def test_the_overlay_tints_inside_and_outlines_the_border():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    shown = np.asarray(overlay(Image.new("RGB", (20, 20)), mask))
    assert not shown[~mask].any()
    assert tuple(shown[5, 10]) == OVERLAY_RGB and tuple(shown[10, 14]) == OVERLAY_RGB
    assert 0 < shown[10, 10, 0] < OVERLAY_RGB[0]
