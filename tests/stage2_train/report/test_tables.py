"""The headline: rows, both resolutions, published figures, and what is said about them."""

import json
import shutil

import pytest

from shared.types import AnswerStatus
from stage2_train.report import write_report
from stage2_train.report.collect import collect_runs
from stage2_train.report.notices import notices, undone
from stage2_train.report.prior_health import PriorHealth, prior_health
from stage2_train.report.provenance import fact_rows
from stage2_train.report.reference import published
from stage2_train.report.tables import short_names, split_tables, text_table
from tests.stage2_train.report.fake_runs import FAILED, PASSED, write_store


def alarms(runs, **healths):
    return [notice for notice in notices(runs, healths) if notice.level == "alarm"]


def edit(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | changes))


def test_rows_are_baseline_prior_and_the_others(make_run):
    runs = collect_runs([make_run("ours"), make_run("base", method="supervised", quality=0.4)])
    (table,) = split_tables(runs)
    assert [(row.label, row.kind) for row in table.rows] == [
        ("base", "run"),
        ("frozen prior alone", "prior"),
        ("ours", "run"),
    ]
    written = runs[0].evals["val"].summary
    names = ("oiou", "miou", "pr@0.5", "pr@0.7", "pr@0.9")
    assert table.rows[2].original == tuple(written["original"][name] for name in names)
    assert table.rows[2].model == tuple(written["model"][name] for name in names)
    assert table.rows[2].oiou == written["original"]["oiou"] != written["original"]["miou"]
    assert table.resolution == "64×64"


def test_the_printed_table_names_both_resolutions_and_every_row(make_run):
    text = text_table(split_tables(collect_runs([make_run("ours", splits=("val", "testA"))])))
    assert text.count("original size") == text.count("64×64") == text.count("frozen prior alone") == 2
    assert "seed 22" in text and "labels 5%: 3 images, 7 refs" in text


def test_two_runs_scored_against_one_prior_give_one_prior_row(make_run):
    runs = collect_runs([make_run("a"), make_run("b", seed=23)])
    assert [row.kind for row in split_tables(runs)[0].rows].count("prior") == 1


def test_each_of_several_priors_is_called_after_a_run_that_read_it(make_run):
    paths = [make_run("plain", method="supervised"), make_run("box"), make_run("sam", seed=3)]
    scores = json.loads((paths[1] / "eval" / "val.json").read_text())["prior"]
    edit(paths[0] / "eval" / "val.json", prior=scores)  # scored beside a store that it does not read
    better = {size: found | {"oiou": 0.99} for size, found in scores.items()}
    edit(paths[2] / "eval" / "val.json", prior=better)
    rows = [row for row in split_tables(collect_runs(paths))[0].rows if row.kind == "prior"]
    assert [row.label for row in rows] == ["frozen prior alone (box)", "frozen prior alone (sam)"]
    assert rows[1].original[0] == 0.99


def test_scores_of_two_data_sets_have_a_number_and_a_name_of_their_own(make_run):
    one, other = make_run("a"), make_run("b", seed=23)
    num = json.loads((one / "eval" / "val.json").read_text())["num"]
    (table,) = split_tables(collect_runs([one, other]))
    assert table.sentences == f"{num} sentences" and not table.of_several
    edit(other / "eval" / "val.json", num=1200, data={"dataset": "photos", "split_by": "jsonl"})
    tables = split_tables(collect_runs([one, other]))
    assert tables[0].sentences == f"{num} to 1,200 sentences of 2 data sets"
    assert f"n={num} of refshapes (unc)" in text_table(tables)
    assert "n=1200 of photos (jsonl)" in text_table(tables)
    path, _ = write_report([one, other])
    html = path.read_text()
    assert f"{num} to 1,200 sentences of 2 data sets.</p>" in html
    assert "<br>1,200 sentences of photos (jsonl)</dt>" in html and "1,200<br>photos (jsonl)</td>" in html


def test_a_second_pass_is_a_row_of_its_own(make_run):
    path = make_run("a")
    scores = {"oiou": 0.9, "miou": 0.8, "pr@0.5": 0.7}
    found = {"model": scores, "original": scores}
    edit(path / "eval" / "val.json", self_guided=found, with_prior=found)
    rows = split_tables(collect_runs([path]))[0].rows
    further = ["a, self-guided", "a, with prior (another method)"]
    assert [row.label for row in rows] == ["frozen prior alone", "a", *further]
    assert rows[2].original == rows[3].original == (0.9, 0.8, 0.7, None, None)
    assert rows[3].method == "l2l, with prior (another method)"


def test_published_figures_are_those_of_the_table():
    figures = {(item.method, item.split): item.oiou for item in published("refcoco", "unc", 0.05)}
    assert figures["Supervised", "val"] == pytest.approx(0.4358)
    assert figures["L2L", "val"] == pytest.approx(0.6730)


@pytest.mark.parametrize(
    ("dataset", "split_by", "fraction"),
    [
        ("refshapes", "unc", 0.05),
        ("refcoco", "google", 0.05),
        ("refcoco", "unc", 0.07),
        ("refcoco", "unc", None),
    ],
)
def test_published_figures_are_never_carried_over(dataset, split_by, fraction):
    assert published(dataset, split_by, fraction) == []


def test_published_rows_stand_in_the_table_without_invented_cells(make_run):
    path = make_run("a")
    config = json.loads((path / "config.json").read_text())
    config["config"]["data"]["dataset"] = "refcoco"
    (path / "config.json").write_text(json.dumps(config))
    rows = [row for row in split_tables(collect_runs([path]))[0].rows if row.kind == "published"]
    assert {row.label for row in rows} >= {"Supervised, published", "L2L, published"}
    assert all(set(row.original + row.model) == {None} and 0 < row.published < 1 for row in rows)


def test_every_share_of_labels_has_its_published_figures(make_run):
    paths = [make_run("a"), make_run("b", seed=23), make_run("c"), make_run("d")]
    for path, fraction, dataset in zip(
        paths, (0.01, 0.01, 0.1, 0.05), ("refcoco",) * 3 + ("own",), strict=True
    ):
        config = json.loads((path / "config.json").read_text())
        config["config"]["data"]["dataset"] = dataset
        edit(path / "config.json", config=config["config"], fraction=fraction)
    tables = split_tables(collect_runs(paths))
    rows = {row.label: row for row in tables[0].rows if row.kind == "published"}
    for fraction, labels in ((0.01, "1%"), (0.1, "10%")):
        for figure in published("refcoco", "unc", fraction):
            if figure.split == "val":
                row = rows.pop(f"{figure.method}, published (refcoco, {labels})")
                assert (row.published, row.labels) == (figure.oiou, labels)
    assert not rows
    assert "L2L (refcoco, 1%) " in text_table(tables) and "L2L (refcoco, 10%) " in text_table(tables)


def test_a_sound_prior_raises_no_alarm(make_run):
    (run,) = collect_runs([make_run("a")])
    health = prior_health(run)
    assert (health.canary, health.problem) == ("passed", "")
    assert health.usable_share > 0.9 and health.num_rows == sum(count for _, count in health.statuses)
    assert alarms([run], a=health) == []


@pytest.mark.parametrize(
    ("canary", "refuse_share", "words"),
    [
        (FAILED, 0.05, "grounding canary failed (mean IoU 0.03, 5 boxes on 16 drawn scenes"),
        ({"mode": "skip", "passed": None}, 0.05, "canary was skipped"),
        (PASSED, 0.8, "answers hold a usable box"),
    ],
)
def test_a_junk_store_raises_an_alarm_in_plain_words(make_run, world, tmp_path, canary, refuse_share, words):
    store = write_store(world, path=tmp_path / "junk", canary=canary, refuse_share=refuse_share)
    (run,) = collect_runs([make_run("a", store=store)])
    (alarm,) = alarms([run], a=prior_health(run))
    assert words in alarm.text and "says nothing about the method" in alarm.text


def test_a_shard_written_without_the_canary_counts(make_run, world, tmp_path):
    store = write_store(world, path=tmp_path / "mixed", canary=PASSED, shard_info={"canary_passed": None})
    (run,) = collect_runs([make_run("a", store=store)])
    assert prior_health(run).canary == "skipped"


def test_a_prior_that_scores_next_to_nothing_raises_an_alarm(make_run):
    path = make_run("a")
    low = {"oiou": 0.04, "miou": 0.03, "pr@0.5": 0.0}
    edit(path / "eval" / "val.json", prior={"model": low, "original": low})
    (alarm,) = alarms(collect_runs([path]))
    assert "0.040 on val" in alarm.text


def test_a_missing_prior_score_is_said(make_run):
    path = make_run("a")
    edit(path / "eval" / "val.json", prior=None, prior_note="no prior score: the store is gone")
    (notice,) = [item for item in notices(collect_runs([path]), {}) if "own score is missing" in item.title]
    assert "val (no prior score: the store is gone)" in notice.text


def test_a_run_without_a_prior_has_no_prior_to_mistrust(make_run):
    (run,) = collect_runs([make_run("a", method="supervised")])
    assert prior_health(run) is None and alarms([run]) == []


def test_a_store_that_is_gone_is_a_problem_not_an_error(make_run, tmp_path):
    (run,) = collect_runs([make_run("a", store=tmp_path / "gone")])
    assert "not there any more" in prior_health(run).problem


def scores_of(path, split, own, prior):
    file = path / "eval" / f"{split}.json"
    edit(file, original=dict(zip(("oiou", "miou", "pr@0.5"), own, strict=True)),
         prior={"original": dict(zip(("oiou", "miou", "pr@0.5"), prior, strict=True))})  # fmt: skip


def test_a_prior_that_scores_higher_is_named_with_metric_and_split_and_not_by_what_no_table_shows(make_run):
    path = make_run("a", splits=("val", "testB"))
    scores_of(path, "val", own=(0.65, 0.6612, 0.7), prior=(0.61, 0.6614, 0.8))
    scores_of(path, "testB", own=(0.62856, 0.69, 0.75), prior=(0.62944, 0.68, 0.75))
    title = "The frozen prior alone scores higher than a trained model"
    (notice,) = [one for one in notices(collect_runs([path]), {}) if one.title == title]
    assert notice.text.startswith(
        "At the original size, prior against model: Pr@0.5 on val 0.800 against 0.700 (a). "
    )
    scores_of(path, "val", own=(0.65, 0.6612, 0.8), prior=(0.61, 0.6614, 0.8))
    assert title not in [one.title for one in notices(collect_runs([path]), {})]


def test_names_of_a_grids_runs_lose_what_all_share():
    names = [f"{method}/fraction-0.01/seed-{seed}" for method in ("supervised", "l2l") for seed in (22, 23)]
    assert list(short_names(names).values()) == [
        "supervised, seed 22", "supervised, seed 23", "l2l, seed 22", "l2l, seed 23",
    ]  # fmt: skip
    assert short_names(["a/fraction-0.01/seed-2", "a/fraction-0.1/seed-2"]) == {
        "a/fraction-0.01/seed-2": "a, 1% labels",
        "a/fraction-0.1/seed-2": "a, 10% labels",
    }
    assert short_names(["x/run", "y"]) == {"x/run": "x/run", "y": "y"}
    assert short_names(names[:1]) == {names[0]: names[0]}


def test_a_run_that_is_not_finished_or_not_scored_names_the_command_that_goes_on(make_run):
    part, unscored = make_run("part", steps=20), make_run("unscored")
    (part / "done.json").unlink()
    for path in (part, unscored):
        shutil.rmtree(path / "eval")
    runs = collect_runs([part, unscored])
    first, second = undone(runs)
    start = "part: not finished (logged to step 18 of 20): l2l train embedded-l2l --resume --out"
    assert first.startswith(f"{start} {part} --set")
    assert second == f"unscored: finished, not scored: l2l eval {unscored}"
    titles = [one.title for one in notices(runs, {})]
    assert "Not finished or not scored" in titles and "One seed" not in titles
    assert undone(collect_runs([make_run("whole")])) == []


def test_a_prior_that_was_scored_beside_runs_that_read_none_has_its_store_named(make_run):
    path = make_run("base", method="supervised")
    edit(path / "eval" / "val.json", prior_note="from some/store.zarr")
    assert "<code>some/store.zarr</code>" in write_report([path])[0].read_text()


def test_usable_answers_are_counted_not_rounded(make_run):
    run = make_run("a")
    health = prior_health(*collect_runs([run]))
    assert 0 < health.num_usable < health.num_rows
    assert f"{health.num_usable:,} of {health.num_rows:,}</td>" in write_report([run])[0].read_text()


def test_unequal_runs_part_scores_and_single_seeds_are_said(make_run):
    first, second = make_run("a"), make_run("b", seed=23)
    edit(first / "config.json", code={"version": "1", "sources": "aaaa"})
    edit(second / "split.json", hash="other", weak_label="box")
    edit(
        second / "config.json",
        global_batch={"labelled": 8, "unlabelled": 8},
        code={"version": "1", "sources": "bbbb"},
    )
    edit(second / "eval" / "val.json", limit=10)
    titles = {notice.title: notice.text for notice in notices(collect_runs([first, second]), {})}
    differ = titles["The runs differ in more than the method"]
    assert all(
        name in differ for name in ("global batch", "labelled images (split hash)", "weak labels", "code")
    )
    assert "b on val" in titles["Scored on a part of the sentences"]
    assert "One seed" not in titles
    assert "One seed" in [notice.title for notice in notices(collect_runs([first]), {})]


def test_settings_that_compared_runs_do_not_share_are_said(make_run, tmp_path):
    """What a method does not choose, and priors that are misplaced on purpose, which no score of a prior shows."""
    paths = [make_run(name, store=tmp_path / "s") for name in ("a", "b")]
    settings = {
        "optim": {"lr": 1}, "weak": {"flip": 0.5}, "strong": {}, "text": {}, "precision": "fp32",
        "misplaced_priors": 0.0, "segmentor": {"vision": {"image_size": 96}},
    }  # fmt: skip
    for path in paths:
        edit(path / "config.json", config=settings)
    titles = {notice.title: notice.text for notice in notices(collect_runs(paths), {})}
    assert "The runs differ in more than the method" not in titles
    other = {"optim": {"lr": 2}, "weak": {"flip": 0}, "precision": "bf16", "misplaced_priors": 0.3,
             "segmentor": {"vision": {"image_size": 64}}}  # fmt: skip
    edit(paths[1] / "config.json", config=settings | other)
    titles = {notice.title: notice.text for notice in notices(collect_runs(paths), {})}
    differ = titles["The runs differ in more than the method"]
    for name in ("optimiser", "views and text augmentation", "precision", "image size", "misplaced priors"):
        assert name in differ
    misplaced = titles["Trained with misplaced priors"]
    assert "b 30%" in misplaced and "a 0%" not in misplaced


def test_other_annotations_and_other_ground_truth_are_said_in_order(make_run):
    splits = ("val", "testA", "testB")
    paths = [make_run(name, splits=splits) for name in ("a", "b")]
    for path in paths:
        edit(path / "config.json", data_fingerprint=path.name)
        for split in splits:
            edit(path / "eval" / f"{split}.json", masks=path.name)
    runs = collect_runs(paths)
    (differ,) = [one.text for one in notices(runs, {}) if one.title.startswith("The runs differ")]
    listed = "annotations, ground truth of val, ground truth of testA, ground truth of testB."
    assert f"do not share: {listed}" in differ and "`masks` in `eval/<split>.json`" in differ
    (row,) = [row for row in fact_rows(runs) if row.name == "annotations, hash"]
    assert row.values == ("a", "b")


@pytest.mark.parametrize(
    ("segmentor", "said"),
    [
        (
            {"weights": "/where/lavt.safetensors", "weight_parts": ["vision", "text", "fusion", "decoder"]},
            True,
        ),
        (
            {"weights": "/where/lavt.safetensors", "weight_parts": ["vision"]},
            True,
        ),  # it learnt from masks, too
        ({"weights": "embedded"}, False),
        ({"weights": None, "vision": {"weights": "microsoft/swin"}}, False),
    ],
)
def test_labels_of_a_network_that_is_started_from_are_not_counted_and_that_is_said(make_run, segmentor, said):
    path = make_run("a")
    config = json.loads((path / "config.json").read_text())["config"]
    edit(path / "config.json", config=config | {"segmentor": segmentor})
    found = {notice.title: notice for notice in notices(collect_runs([path]), {})}
    title = "Starts from a network whose own labels are not counted"
    assert (title in found) is said
    assert not said or (
        found[title].level == "warn" and "a: segmentor.weights names lavt.safetensors." in found[title].text
    )


def test_scores_on_training_images_are_said(make_run):
    paths = [make_run(name) for name in ("a", "b", "c")]
    for path, shared in zip(paths, (12, 0, None), strict=True):
        edit(path / "eval" / "val.json", **({} if shared is None else {"shared_with_train": shared}))
    runs = collect_runs(paths)
    title = "Scored on images that were trained on"
    (notice,) = [one for one in notices(runs, {}) if one.title == title]
    assert notice.level == "warn" and f" a on val: 12 of {runs[0].evals['val'].num}. " in notice.text
    assert not [one for one in notices(runs[1:], {}) if one.title == title]
    edit(paths[1] / "eval" / "val.json", shared_with_train=None)
    (notice,) = [
        one for one in notices(collect_runs(paths[1:]), {}) if one.title.startswith("Not known whether")
    ]
    assert notice.text.startswith("b on val: ")


def test_every_status_with_a_box_counts_as_one():
    statuses = tuple((status.value, 1) for status in AnswerStatus)
    health = PriorHealth(path="", fingerprint="", canary="", canary_detail="", statuses=statuses, problem="")
    assert health.usable_share == pytest.approx(4 / len(AnswerStatus))
