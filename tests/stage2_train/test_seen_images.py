"""Sentences of images that a run was trained on are counted, under whatever name and from wherever they are scored."""

import dataclasses
import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from shared.refer import ReferDataset, load_refer
from stage2_train.evaluate import evaluate_run
from stage2_train.seen_images import shared_with_train


@pytest.fixture
def dataset(mini_root: Path) -> ReferDataset:
    return load_refer(mini_root / "data", "refshapes", "unc")


@pytest.fixture
def swapped(mini_root: Path, tmp_path: Path) -> Path:
    """Another data set of the same images: what the run was trained on is scored, and the other way round."""
    root = Path(shutil.copytree(mini_root / "data", tmp_path / "data"))
    shutil.copytree(root / "refshapes", root / "swapped")
    path = root / "swapped" / "refs(unc).p"
    rows = pickle.loads(path.read_bytes())
    for row in rows:
        row["split"] = {"train": "val", "val": "train"}.get(row["split"], row["split"])
    path.write_bytes(pickle.dumps(rows, protocol=2))
    return root


def test_the_runs_own_train_split_counts(mini_run: Path, mini_root: Path, dataset: ReferDataset) -> None:
    root, val = str(mini_root / "data"), dataset.samples("val")
    assert shared_with_train(mini_run, dataset, root, val) == 0
    seen = dataclasses.replace(val[0], file_name=dataset.samples("train")[0].file_name)
    assert shared_with_train(mini_run, dataset, root, [seen, *val[1:], seen]) == 2


def test_another_data_set_of_the_train_images_is_found_out(mini_run: Path, swapped: Path) -> None:
    result = evaluate_run(
        mini_run, "val", root=str(swapped), dataset_name="swapped", limit=3, write=False, quiet=True
    )
    assert (result["num"], result["shared_with_train"]) == (3, 3)


def test_below_another_root_pixels_decide(mini_run: Path, swapped: Path, dataset: ReferDataset) -> None:
    """Names such as 0001.jpg are common; the run's own data lie where they lay."""
    shutil.rmtree(swapped / "refshapes")
    scored = load_refer(swapped, "swapped", "unc")
    samples = scored.samples("val")
    assert shared_with_train(mini_run, scored, str(swapped), samples) == len(samples)
    first = scored.image_path(samples[0])
    ImageOps.invert(Image.open(first).convert("RGB")).save(first)
    others = [sample for sample in samples if sample.file_name != samples[0].file_name]
    assert shared_with_train(mini_run, scored, str(swapped), samples) == len(others) < len(samples)


def test_where_the_runs_own_data_have_changed_nothing_is_claimed(
    mini_run: Path, swapped: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(mini_run, tmp_path / "run"))
    record = (run / "config.json").read_text()
    (run / "config.json").write_text(record.replace('"data_fingerprint": "', '"data_fingerprint": "x'))
    scored = load_refer(swapped, "swapped", "unc")
    assert shared_with_train(run, scored, str(swapped), scored.samples("val")) is None
