import json

import pytest

from stage2_train.report.collect import collect_runs
from stage2_train.report.curves import PANELS, PRIOR_STYLE, curve_charts


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
    assert [line["style"] for line in quality.lines] == [PRIOR_STYLE, 0, 2]


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


def test_a_validation_says_of_how_many_sentences_of_which_split(make_run):
    path = make_run("a")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps(config | {"config": config["config"] | {"val_split": "val"}})
    )
    main, _ = curve_charts(collect_runs([path]))
    assert main[0].note == "Original image size. On 30 sentences of val."


def test_a_loss_has_no_unit():
    """It is a sum of cross entropy and Dice."""
    assert {panel.y_label for panel in PANELS if "oss" in panel.title} == {"loss"}
