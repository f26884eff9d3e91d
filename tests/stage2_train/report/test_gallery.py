"""A card's pictures and its figures are of one thing."""

import json

from stage2_train.config import RuntimeConfig
from stage2_train.inputs import open_inputs
from stage2_train.report.collect import collect_runs
from stage2_train.report.gallery import _soft_uri, build_gallery, taught_cards
from stage2_train.report.sources import sources_of
from stage2_train.train import train
from tests.stage2_train.miniature import mini_config, plain_config


def test_the_priors_figure_and_its_picture_are_of_one_run(make_run):
    base, ours = make_run("base", method="supervised"), make_run("ours")
    file = base / "eval" / "val.jsonl"
    rows = [json.loads(line) | {"prior_iou_original": 0.123} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = collect_runs([base, ours])
    cards, _ = build_gallery(runs, sources_of(runs))
    theirs = {key: row["prior_iou_original"] for key, row in runs[1].evals["val"].by_id().items()}
    assert cards and all(card.prior_iou == theirs[card.sample_id] for card in cards)


def test_what_is_shown_as_prior_is_what_was_read(mini_root, tmp_path):
    config = mini_config(
        mini_root, steps=1, misplaced_priors=1.0, runtime=RuntimeConfig(tensorboard=False, log_every=1)
    )
    train(config, tmp_path / "run", quiet=True)
    (run,) = collect_runs([tmp_path / "run"])
    cards = taught_cards(run, sources_of([run]), key="p", budget_bytes=10**7)
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
    cards = taught_cards(run, sources_of([run]), key="p", budget_bytes=10**7)
    assert run.store and cards
    assert not [picture for card in cards for picture in card.pictures if picture.title == "frozen prior"]
    assert not any(card.answer for card in cards)
