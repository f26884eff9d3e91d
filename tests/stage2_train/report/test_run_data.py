import dataclasses
import json

import pytest

from stage2_train.report.collect import collect_runs
from stage2_train.report.notices import notices
from stage2_train.report.provenance import fact_rows
from stage2_train.report.run_data import FIELDS, RunData, finite, in_report_order
from stage2_train.report.tables import labels_text
from tests.stage2_train.report.test_tables import edit


def test_a_method_is_one_at_every_seed_and_share_of_labels(tmp_path):
    def arm(**settings):
        config = {"method": "l2l", "config": {"method": "l2l", "steps": 9, **settings}}
        return RunData(path=tmp_path, name="x", config=config, split={}, metrics=[], evals={}, done={}).arm

    own = arm(seed=1, split_seed=1, fraction=0.05)
    for settings in (
        {"seed": 2},
        {"split_seed": 2},
        {"fraction": 0.1},
        {"store": "x"},
        {"runtime": {"a": 1}},
        {"alarm": {"patience": 0}},
    ):
        assert arm(**{"seed": 1, "split_seed": 1, "fraction": 0.05, **settings}) == own
    assert arm(seed=1, split_seed=1, fraction=0.05, batch_labelled=3) != own


def test_splits_are_in_the_order_of_the_papers():
    splits = ["refcocog-val", "train", "testB", "own", "testA", "test", "val"]
    assert in_report_order(splits) == ["val", "testA", "testB", "test", "train", "own", "refcocog-val"]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (2, 2.0),
        (0.5, 0.5),
        (float("inf"), None),
        (float("nan"), None),
        (True, None),
        ("2", None),
        (None, None),
    ],
)
def test_only_finite_numbers_are_numbers(value, number):
    assert finite(value) == number


def test_the_share_is_what_is_labelled_where_it_was_not_drawn(make_run):
    path = make_run("a")
    (run,) = collect_runs([path])
    asked, images = run.fraction, run.labelled[0]
    edit(path / "split.json", num_train_images=int(images / asked))
    assert collect_runs([path])[0].fraction == asked
    edit(
        path / "split.json", num_train_images=8 * images
    )  # a file named them, or few images carry a mask at all
    (run,) = collect_runs([path])
    assert run.fraction == 1 / 8 and labels_text(run).startswith("12.5%")
    edit(path / "split.json", weak_label="point")
    assert labels_text(collect_runs([path])[0]).endswith(" + a point for every other object")


def test_masks_stay_in_their_file_until_a_card_asks_for_them(make_run):
    path = make_run("a")
    rows = [json.loads(line) for line in (path / "eval" / "val.jsonl").read_text().splitlines()]
    (run,), (same,) = collect_runs([path]), collect_runs([path])
    data, wanted = run.evals["val"], rows[3]
    key = wanted["sample_id"]
    assert "counts" not in repr(dataclasses.astuple(data))
    assert data.predictions({key}) == {key: wanted["pred_rle"]}
    assert data.by_id()[key] == {name: wanted[name] for name in ("expression", *FIELDS)}
    assert all(a is b for a, b in zip(data.sample_ids, same.evals["val"].sample_ids, strict=True))
    data.file.unlink()
    assert data.predictions({key}) == {}


def test_a_run_gone_on_with_elsewhere_says_so(make_run):
    path = make_run("a")
    edit(path / "config.json", num_processes=1)
    assert collect_runs([path])[0].num_processes == (1,)
    with (path / "metrics.jsonl").open("a") as log:
        for number in (1, 4, 4):
            log.write(json.dumps({"step": 9, "kind": "resume", "num_processes": number}) + "\n")
    assert collect_runs([path])[0].num_processes == (1, 4)


def test_a_run_gone_on_with_by_other_code_says_so(make_run):
    path = make_run("a")
    assert collect_runs([path])[0].codes == ()
    edit(path / "config.json", code={"version": "1", "sources": "aaaa"})
    with (path / "metrics.jsonl").open("a") as log:
        for step, code in ((8, "aaaa"), (9, "bbbb"), (9, None)):  # of an older code, which did not say
            log.write(json.dumps({"step": step, "kind": "resume", "code": code}) + "\n")
    runs = collect_runs([path])
    assert runs[0].codes == ("aaaa", "bbbb")
    said = {notice.title: notice.text for notice in notices(runs, {})}
    assert said["Trained by more than one state of the code"].startswith("a: begun by one and continued by")
    assert {row.name: row.values for row in fact_rows(runs)}["code"] == ("aaaa, then bbbb",)
