"""RefShapes on disk: official layout, same seed same bytes, exact masks, families per split."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from shared.errors import DataError
from shared.masks import decode_segmentation
from shared.refer import load_refer
from shared.seeding import rng
from shared.synth.refshapes import write_refshapes
from shared.synth.scenes import draw_scene
from shared.synth.shapes import ANGULAR_SHAPES, ROUND_SHAPES


def _hashes(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("refshapes")
    return root, write_refshapes(root, "refshapes", num_train_images=12, seed=3, progress=False)


def test_same_seed_same_bytes(written, tmp_path):
    root, summary = written
    again = write_refshapes(tmp_path, "refshapes", num_train_images=12, seed=3, progress=False)
    assert _hashes(root) == _hashes(tmp_path)
    assert again["sha256"] == summary["sha256"]


def test_another_seed_gives_other_images(written, tmp_path):
    _, summary = written
    assert write_refshapes(tmp_path, "refshapes", 12, seed=4, progress=False)["sha256"] != summary["sha256"]


def test_the_reader_of_real_data_reads_it(written):
    root, summary = written
    dataset = load_refer(root, "refshapes", "unc")
    assert set(dataset.splits) == {"train", "val", "testA", "testB"}
    for split, counts in summary["splits"].items():
        samples = dataset.samples(split)
        assert len(samples) == counts["sentences"]
        assert len({sample.image_id for sample in samples}) == counts["images"]
        assert len({sample.ref_id for sample in samples}) == counts["refs"]
        assert counts["sentences"] >= 2 * counts["refs"]
        for sample in samples:
            assert dataset.mask(sample).any()
            assert dataset.image(sample).size == (sample.width, sample.height)


def test_annotations_are_the_drawn_pixels_as_polygon_and_as_rle(written):
    root, _ = written
    document = json.loads((root / "refshapes" / "instances.json").read_text())
    kinds = {type(annotation["segmentation"]) for annotation in document["annotations"]}
    assert kinds == {list, dict}
    scene = draw_scene(rng("refshapes", 3, "train", 0))  # the first image, if its objects could be described
    drawn = [
        decode_segmentation(a["segmentation"], 128, 128)
        for a in document["annotations"]
        if a["image_id"] == 1
    ]
    image = np.asarray(Image.open(root / "images" / "refshapes_000000000001.jpg"), dtype=np.int16)
    assert np.abs(image - scene.image_HW3).mean() < 6
    assert np.array_equal(np.stack(drawn), scene.masks_KHW)


def test_test_splits_hold_one_family_each(written):
    root, _ = written
    with (root / "refshapes" / "refs(unc).p").open("rb") as file:
        refs = pickle.load(file)
    categories = json.loads((root / "refshapes" / "instances.json").read_text())["categories"]
    names = {category["id"]: category["name"] for category in categories}
    shapes = {
        split: {names[r["category_id"]] for r in refs if r["split"] == split} for split in ("testA", "testB")
    }
    assert shapes["testA"] and shapes["testA"] <= set(ROUND_SHAPES)
    assert shapes["testB"] and shapes["testB"] <= set(ANGULAR_SHAPES)


def test_refusals_name_what_is_wrong(written, tmp_path):
    root, _ = written
    with pytest.raises(DataError, match="already holds"):
        write_refshapes(root, "refshapes", 12, seed=3, progress=False)
    with pytest.raises(DataError, match="purple"):
        write_refshapes(tmp_path, "purple", 12, seed=3, progress=False)
    with pytest.raises(DataError, match="0"):
        write_refshapes(tmp_path, "refshapes", 0, seed=3, progress=False)
