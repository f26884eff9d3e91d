"""A user's own data through stage 2: masks decide who is labelled, and most pairs have none."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.config import DataConfig
from shared.errors import DataError
from shared.jsonl import load_jsonl
from shared.refer import load_refer
from shared.synth.example import write_example
from stage2_train.config import RuntimeConfig
from stage2_train.dry_run import describe
from stage2_train.evaluate import evaluate_run, is_scored
from stage2_train.export_labels import export_labels
from stage2_train.inputs import open_inputs
from stage2_train.report import write_report
from stage2_train.split import make_split, scorable
from stage2_train.train import train
from tests.stage2_train.miniature import batch_of, mini_config, plain_config, write_priors


@pytest.fixture(scope="module")
def config(mini_root, tmp_path_factory):
    """L2L on the example: 12 training pairs of which 3 have masks, and as many val pairs."""
    root = tmp_path_factory.mktemp("own")
    path = write_example(root / "mine", 12)["path"]
    dataset = load_jsonl(path)
    write_priors(root / "stores" / "photos.zarr", dataset, splits=("train", "val"))
    return dataclasses.replace(
        mini_config(mini_root),
        data=DataConfig(root=path, dataset=""),
        cache_root=str(root / "stores"),
        fraction=1.0,
        steps=2,
        eval_every=1,
        runtime=RuntimeConfig(tensorboard=False, log_every=1),
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("own-run") / "photos"
    train(config, out, quiet=True)
    return out


def test_masks_decide_who_is_labelled(config):
    dataset = load_jsonl(config.data.root)
    split = make_split(dataset, 1.0, 0)
    assert [len(split.labelled), len(split.unlabelled)] == [3, 9]
    assert all(dataset.has_mask(ref[0]) for ref in split.labelled)
    fewer = make_split(dataset, 0.34, 0)
    assert [len(fewer.labelled), len(fewer.unlabelled)] == [1, 11]
    assert sum(dataset.has_mask(ref[0]) for ref in fewer.unlabelled) == 2
    kept = pickle.dumps(dataset.without_masks(fewer.image_ids))
    for image_id in set(split.image_ids) - set(fewer.image_ids):
        assert f"masks/{image_id:04d}.png".encode() not in kept


def test_names_of_labelled_images_outlast_a_line_that_is_inserted(config, tmp_path):
    """Ids are numbers of lines: one more line above them, and they name other images."""
    own = Path(shutil.copytree(Path(config.data.root).parent, tmp_path / "mine")) / "photos.jsonl"
    dataset = load_jsonl(own)
    chosen, names = dataset.drawn_image_ids()[1:], dataset.image_names()
    wanted = [names[image_id] for image_id in chosen]
    by_id, by_name = tmp_path / "ids.txt", tmp_path / "names.txt"
    by_id.write_text("".join(f"{image_id}\n" for image_id in chosen))
    by_name.write_text("".join(f"{name}\n" for name in wanted))

    def labelled(file):
        now = load_jsonl(own)
        return [now.image_names()[image_id] for image_id in make_split(now, 1.0, 0, str(file)).image_ids]

    assert labelled(by_name) == labelled(by_id) == wanted
    own.write_text("# one line more\n" + own.read_text())
    assert labelled(by_name) == wanted and labelled(by_id) != wanted
    by_name.write_text("images/gone.jpg\n")
    with pytest.raises(DataError, match=r"names.txt: line 1: 'images/gone.jpg' is not a training image"):
        labelled(by_name)


def test_a_batch_takes_masks_of_labelled_pairs_alone(config):
    batch = batch_of(config)
    drawn = load_jsonl(config.data.root).has_mask
    assert all(map(drawn, batch.labelled.samples)) and not any(map(drawn, batch.unlabelled.samples))


def test_training_evaluation_and_report(run):
    split = json.loads((run / "split.json").read_text())
    assert (split["num_refs"], split["num_unlabelled_refs"]) == (3, 9)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "coverage" in json.dumps(lines) and "selected_accuracy" not in json.dumps(lines)
    assert evaluate_run(run, "val")["num"] == 3
    scores = evaluate_run(run, "train")
    assert scores["num"] == 3 and scores["prior"]["original"]["num"] == 3
    path, _ = write_report([run])
    assert path.stat().st_size > 10_000
    assert "photos (jsonl)" in (run / "model" / "README.md").read_text()


def test_pseudo_labels_can_be_read_back(run, tmp_path):
    assert export_labels(run, tmp_path, quiet=True)["num"] == 9
    dataset = load_refer(tmp_path, "photos-pseudo", "jsonl")
    for sample in dataset.samples():
        assert dataset.mask(sample).shape == dataset.image(sample).size[::-1]


def test_pseudo_labels_of_other_data_than_the_runs_are_refused(config, mini_root, tmp_path):
    """Ids of other lines name other pairs; without its mask a labelled pair would be exported as an unlabelled one."""
    own = Path(shutil.copytree(Path(config.data.root).parent, tmp_path / "mine")) / "photos.jsonl"
    data, runtime = DataConfig(root=str(own), dataset=""), RuntimeConfig(tensorboard=False)
    settings = {"data": data, "fraction": 1.0, "steps": 1, "runtime": runtime}
    train(plain_config(mini_root, "fixmatch", **settings), tmp_path / "run", quiet=True)
    lines = own.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith("{") and "mask" in json.loads(line))
    pair = json.loads(lines[number])
    unmasked = {name: value for name, value in pair.items() if name != "mask"}
    for changed, message in (
        (
            pair | {"expression": "the star"},
            "photos.jsonl: has other annotations than .*run was trained on; give",
        ),
        (
            unmasked,
            r"carry other labels than when .*\(num_refs is 3 there, 2 now\); give the old data back",
        ),
    ):
        own.write_text("\n".join([*lines[:number], json.dumps(changed), *lines[number + 1 :]]) + "\n")
        with pytest.raises(DataError, match=message):
            export_labels(tmp_path / "run", tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_split_without_masks_cannot_be_scored(config, tmp_path):
    bare = Path(shutil.copytree(Path(config.data.root).parent, tmp_path / "mine")) / "photos.jsonl"
    rows = [json.loads(line) for line in bare.read_text().splitlines() if not line.startswith("#")]
    kept = [{k: v for k, v in row.items() if k != "mask" or "split" not in row} for row in rows]
    bare.write_text("".join(json.dumps(row) + "\n" for row in kept))
    with pytest.raises(DataError, match="split 'val' carries no mask"):
        open_inputs(dataclasses.replace(config, data=DataConfig(root=str(bare), dataset="")))
    for row in rows:
        row.pop("mask", None)
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="no train image carries a mask"):
        open_inputs(dataclasses.replace(config, data=DataConfig(root=str(bare), dataset="")))


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_mask_that_cannot_be_read_is_told_before_a_run_begins(config, tmp_path, part):
    """It may be drawn first after days, and the run would then keep to it."""
    own = Path(shutil.copytree(Path(config.data.root).parent, tmp_path / "mine")) / "photos.jsonl"
    lines = own.read_text().splitlines()
    drawn = [n for n, line in enumerate(lines) if line.startswith("{") and "mask" in json.loads(line)]
    number = drawn[0 if part == "train" else -1]
    lines[number] = json.dumps(json.loads(lines[number]) | {"mask": [[1, 2, 3, 4]]})
    own.write_text("\n".join(lines) + "\n")
    broken = dataclasses.replace(config, data=DataConfig(root=str(own), dataset=""))
    with pytest.raises(DataError, match=f"photos.jsonl: line {number + 1}: polygon of 4 numbers"):
        train(broken, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=f"line {number + 1}: polygon of 4 numbers"):
        describe(broken)
    if part == "val":
        open_inputs(dataclasses.replace(broken, eval_every=0))


def test_a_corrected_mask_is_another_label(config, run, tmp_path):
    """Neither lines nor counts change; scores of the old masks are no scores of the new ones."""
    root = shutil.copytree(Path(config.data.root).parent, tmp_path / "mine")
    moved = dataclasses.replace(
        config, data=DataConfig(root=str(root / Path(config.data.root).name), dataset="")
    )
    dataset = load_jsonl(moved.data.root)
    train_samples, val = (scorable(dataset, split) for split in ("train", "val"))
    before = dataset.masks_hash(val)
    assert before == dataset.masks_hash(val[::-1]) == load_jsonl(config.data.root).masks_hash(val)
    own = shutil.copytree(run, tmp_path / "run")
    evaluate_run(own, "val", root=moved.data.root, quiet=True)
    assert is_scored(own, "val", before) and not is_scored(own, "testA", before)

    def redraw(sample):
        file = dataset._segmentation(sample).path
        Image.fromarray(np.roll(np.asarray(Image.open(file)), 3, axis=1)).save(file)

    redraw(val[0])
    after = load_jsonl(moved.data.root).masks_hash(val)
    assert after != before and not is_scored(own, "val", after)
    (own / "done.json").unlink()
    train(moved, own, resume=True, quiet=True)  # the masks that it learns from are as they were
    assert (own / "done.json").is_file()
    other = shutil.copytree(own, tmp_path / "other")
    evaluate_run(other, "val", root=moved.data.root, quiet=True)
    assert "ground truth of val" in write_report([own, other], tmp_path / "both.html")[0].read_text()

    redraw(train_samples[0])
    (own / "done.json").unlink()
    with pytest.raises(DataError, match=r"when this run began \(masks have been redrawn\); choose"):
        train(moved, own, resume=True, quiet=True)
