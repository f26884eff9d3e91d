"""A card's pictures and its figures are of one thing."""

import json
import shutil

import numpy as np
from PIL import Image

from shared.config import DataConfig
from shared.datasets import load_dataset
from stage2_train.config import RuntimeConfig
from stage2_train.inputs import open_inputs
from stage2_train.report import write_report
from stage2_train.report.collect import collect_runs
from stage2_train.report.gallery import _soft_uri, build_gallery, taught_cards
from stage2_train.report.pseudo_labels import Taught
from stage2_train.report.sources import Sources
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config, plain_config
from tests.stage2_train.report.test_tables import edit


def test_the_priors_figure_and_its_picture_are_of_one_run(make_run):
    base, ours = make_run("base", method="supervised"), make_run("ours")
    file = base / "eval" / "val.jsonl"
    rows = [json.loads(line) | {"prior_iou_original": 0.123} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = collect_runs([base, ours])
    cards, _ = build_gallery(runs, Sources(runs))
    theirs = {key: row["prior_iou_original"] for key, row in runs[1].evals["val"].by_id().items()}
    assert cards and all(card.prior_iou == theirs[card.sample_id] for card in cards)


def test_what_is_shown_as_prior_is_what_was_read(mini_root, tmp_path):
    config = mini_config(
        mini_root, steps=1, misplaced_priors=1.0, runtime=RuntimeConfig(tensorboard=False, log_every=1)
    )
    train(config, tmp_path / "run", quiet=True)
    (run,) = collect_runs([tmp_path / "run"])
    cards = taught_cards(run, Sources([run]), key="p", budget_bytes=10**7)
    priors = open_inputs(config).priors
    assert len(cards) == 4
    for card in cards:
        shown = next(picture for picture in card.pictures if picture.title == "frozen prior")
        proposal_BGG, has_prior_B = priors.read([card.sample_id])
        assert shown.soft == (_soft_uri(proposal_BGG[0].numpy()) if has_prior_B[0] else "")
        assert shown.caption == (
            "of another object" if priors.row_read(card.sample_id) != card.sample_id else ""
        )
    assert any("of another object" in picture.caption for card in cards for picture in card.pictures)


def test_no_prior_is_shown_where_none_was_read(mini_root, tmp_path):
    """`semires` reads candidates of a store, and no prior of it."""
    train(plain_config(mini_root, "semires", steps=1), tmp_path / "run", quiet=True)
    (run,) = collect_runs([tmp_path / "run"])
    cards = taught_cards(run, Sources([run]), key="p", budget_bytes=10**7)
    assert run.store and cards
    assert not [picture for card in cards for picture in card.pictures if picture.title == "frozen prior"]
    assert not any(card.answer for card in cards)


def photos(folder, grey):
    """A JSONL data set of one grey image, whose name and whose pair's id every other one has as well."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (32, 32), (grey,) * 3).save(folder / "images" / "0001.jpg")
    line = {"image": "images/0001.jpg", "expression": f"thing {grey}", "mask": [[2, 2, 20, 2, 20, 20]]}
    (folder / "photos.jsonl").write_text(json.dumps(line))
    return load_dataset(DataConfig(root=str(folder / "photos.jsonl"), dataset="photos"))


def run_on(dataset, path, root):
    """Let a fake run have been trained on a data set."""
    config = json.loads((path / "config.json").read_text())["config"]
    config["data"] = {"root": str(root / "photos.jsonl"), "dataset": "photos", "split_by": "jsonl"}
    edit(path / "config.json", config=config, data_fingerprint=dataset.fingerprint(), store=None)


def test_what_a_run_was_taught_is_drawn_over_the_images_of_its_own_data(make_run, tmp_path, monkeypatch):
    sets = {name: photos(tmp_path / name, grey) for name, grey in (("dark", 40), ("light", 210))}
    for name, dataset in sets.items():
        run_on(dataset, make_run(name), tmp_path / name)
    mask_HW = np.ones((8, 8), bool)
    taught = {
        name: Taught(sample=next(iter(dataset.samples())), prior_of="", weak_HW=mask_HW, target_HW=mask_HW,
                     foreground_HW=mask_HW, background_HW=~mask_HW)
        for name, dataset in sets.items()
    }  # fmt: skip
    monkeypatch.setattr(Sources, "taught", lambda self, run, most: [taught[run.name]])
    runs = collect_runs([tmp_path / "runs" / name for name in sets])
    sources = Sources(runs)
    ids = {one.sample.sample_id for one in taught.values()}
    images = [taught_cards(run, sources, key="p", budget_bytes=10**7)[0].image for run in runs]
    assert len(ids) == 1 and len(set(images)) == 2 and all(images) and not sources.missing


def test_runs_scored_on_other_data_are_not_compared(make_run, tmp_path, world):
    """Of three runs two share their data; the third's sentences have the same ids, and are others."""
    paths = [make_run(name, seed=seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    other = shutil.copytree(world.data, tmp_path / "other")
    config = json.loads((paths[0] / "config.json").read_text())["config"]
    edit(paths[0] / "config.json", config=config | {"data": config["data"] | {"root": str(other)}})
    edit(paths[2] / "config.json", seed=1)
    html = write_report(paths)[0].read_text()
    gallery = html[html.index('id="gallery"') : html.index('id="made"')]
    assert "of the same data: b, c. Scored on other data, or not at all: a." in gallery
    assert "IoU of b, high first" in gallery and "IoU of a, high first" not in gallery
    assert "c − a</th>" not in html
