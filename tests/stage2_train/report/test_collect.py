"""Reading runs: what must be there, what may be missing, and that missing parts are named."""

import dataclasses
import json

import pytest

from shared.errors import DataError
from stage2_train.report.collect import FIELDS, RunData, collect_runs, finite, order_splits
from stage2_train.report.curves import PANELS, curve_charts
from stage2_train.report.tables import labels_text
from tests.stage2_train.report.test_tables import edit


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for path, message in ((tmp_path / "none", "no such run"), (tmp_path, "no config.json")):
        with pytest.raises(DataError, match=message):
            collect_runs([path])
    with pytest.raises(DataError, match="no run directory was given"):
        collect_runs([])


def test_a_broken_config_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="config.json"):
        collect_runs([tmp_path])


def test_everything_else_may_be_missing_and_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"method": "l2l"}))
    (run,) = collect_runs([tmp_path])
    assert run.method == "l2l" and run.evals == {} and run.fraction is None
    assert [line.split(":")[0] for line in run.missing] == [
        "eval/",
        "split.json",
        "metrics.jsonl",
        "done.json",
    ]


def test_facts_come_from_where_training_puts_them(make_run, world):
    (run,) = collect_runs([make_run("a")])
    assert run.data == {"root": str(world.data), "dataset": "refshapes", "split_by": "unc"}
    assert (run.seed, run.fraction, run.labelled) == (22, 0.05, (3, 7))
    assert run.missing == []


def test_a_line_cut_by_a_crash_is_counted_not_raised(make_run):
    path = make_run("a")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')
    (run,) = collect_runs([path])
    assert run.missing == ["metrics.jsonl: 1 unreadable line(s), first at line 212"]


def test_a_sentence_written_twice_counts_once(make_run):
    path = make_run("a")
    file = path / "eval" / "val.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[0]]))
    (run,) = collect_runs([path])
    assert len(run.evals["val"].sample_ids) == len(lines)
    assert "appear twice" in run.missing[0]


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


def test_an_expression_with_a_line_separator_stays_one_row(make_run):
    path = make_run("a")
    file = path / "eval" / "val.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["expression"] = "left\u2028right"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    (run,) = collect_runs([path])
    assert run.evals["val"].expressions[0] == "left\u2028right"


def test_runs_of_one_name_get_different_labels(tmp_path):
    paths = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    for path in paths:
        path.mkdir(parents=True)
        (path / "config.json").write_text('{"method": "l2l"}')
    assert [run.name for run in collect_runs(paths)] == ["x/run", "y/run"]
    assert len({run.name for run in collect_runs([paths[0], paths[0]])}) == 2


def test_cells_of_a_grid_are_told_apart_by_what_differs(make_run):
    paths = [
        make_run(f"{method}/fraction-0.01/seed-{seed}") for method in ("supervised", "l2l") for seed in (1, 2)
    ]
    assert [run.name for run in collect_runs(paths)] == [
        f"{method}/fraction-0.01/seed-{seed}" for method in ("supervised", "l2l") for seed in (1, 2)
    ]


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
    ):
        assert arm(**{"seed": 1, "split_seed": 1, "fraction": 0.05, **settings}) == own
    assert arm(seed=1, split_seed=1, fraction=0.05, batch_labelled=3) != own


def test_splits_are_in_the_order_of_the_papers():
    splits = ["refcocog-val", "train", "testB", "own", "testA", "test", "val"]
    assert order_splits(splits) == ["val", "testA", "testB", "test", "train", "own", "refcocog-val"]


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


def test_no_two_panels_claim_one_scalar():
    claimed = [(panel.kind, name) for panel in PANELS for _, name in panel.series]
    assert len(claimed) == len(set(claimed))


def test_every_logged_scalar_is_drawn(make_run):
    runs = collect_runs([make_run("s", method="supervised"), make_run("l")])
    main, others = curve_charts(runs)
    titles = [chart.title for chart in main]
    assert "Validation oIoU" in titles and "Thresholds of the pseudo-labels: l" in titles
    assert [chart.title for chart in others] == ["grad_norm (train)", "lr_factor (train)", "oiou_model (val)"]
    (quality,) = [chart for chart in main if chart.title.endswith("fused to: l")]
    assert [line["label"] for line in quality.lines] == [
        "frozen prior",
        "weak view (Pw)",
        "map the labels are cut from",
    ]


def test_who_is_right_is_drawn_as_a_share_of_what_is_disputed(make_run):
    path = make_run("l", steps=20)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    train[-1] |= {"disputed": 0.0, "disputed_prior_right": 0.0}
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    main, _ = curve_charts(collect_runs([path]))
    (dispute,) = [chart for chart in main if chart.title.startswith("Where frozen prior and weak view")]
    assert [line["label"] for line in dispute.lines] == [
        "the prior is right",
        "the pixel is taught",
        "and taught rightly",
    ]
    expected = [row["disputed_prior_right"] / row["disputed"] for row in train[:-1]]
    assert dispute.hover["lines"][0]["y"] == pytest.approx(expected, abs=1e-4)


def test_a_step_logged_again_after_a_resume_keeps_its_last_value(make_run):
    path = make_run("a", method="supervised", steps=20)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 18, "kind": "train", "loss": 77.0}) + "\n")
    main, _ = curve_charts(collect_runs([path]))
    (loss,) = [chart for chart in main if chart.title == "Total loss"]
    assert loss.hover["lines"][0]["y"][-1] == 77.0 and len(loss.hover["x"]) == 10


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


def test_a_run_gone_on_with_elsewhere_says_so(make_run):
    path = make_run("a")
    edit(path / "config.json", num_processes=1)
    assert collect_runs([path])[0].num_processes == (1,)
    with (path / "metrics.jsonl").open("a") as log:
        for number in (1, 4, 4):
            log.write(json.dumps({"step": 9, "kind": "resume", "num_processes": number}) + "\n")
    assert collect_runs([path])[0].num_processes == (1, 4)
