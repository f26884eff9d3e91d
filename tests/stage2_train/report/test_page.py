"""The page as a file: stands alone, escapes everything, survives missing parts, stays small."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import shared
import stage2_train.report as report_module
from shared.errors import DataError
from shared.refer import load_refer
from stage2_train.report import stats, write_report
from stage2_train.report.collect import collect_runs
from stage2_train.report.curves import PRIOR_STYLE
from stage2_train.report.data_source import DataSource
from stage2_train.report.gallery import PRIOR_RGB
from stage2_train.report.grids import expand
from stage2_train.report.pseudo_labels import Taught
from stage2_train.report.sources import Sources
from tests.stage2_train.report.fake_runs import HOSTILE
from tests.stage2_train.report.test_tables import edit

VOID = {"meta", "br", "input", "img", "hr", "link"}


class Outline(HTMLParser):
    """Tags with their attributes, and whether every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.text.append(data)


def report(*runs, out=None):
    path, text = write_report(list(runs), out)
    return path.read_text("utf-8"), text


def test_report_goes_to_the_first_run_and_says_what_it_holds(make_run):
    ours, base = make_run("ours"), make_run("base", method="supervised", quality=0.4)
    path, text = write_report([ours, base])
    assert path == ours / "comparison.html" and write_report([ours])[0] == ours / "report.html"
    assert "base" in text and "frozen prior alone" in text and "ours" in text
    Outline(path.read_text("utf-8"))


def test_a_data_set_without_published_figures_says_so(make_run):
    page = " ".join(Outline(report(make_run("ours"))[0]).text)
    assert "gives no figure for this data set and share of labels" in page


def test_the_page_asks_for_nothing(make_run):
    html, _ = report(make_run("ours"), make_run("base", method="supervised"))
    for tag, attrs in Outline(html).tags:
        for name in ("src", "href", "action", "srcset", "poster", "xlink:href"):
            value = attrs.get(name, "#")
            assert value.startswith(("#", "data:image/")), f"<{tag} {name}={value[:60]!r}>"
        assert "style" not in attrs and not [name for name in attrs if name.startswith("on")], (tag, attrs)
    assert "@import" not in html and "url(" not in html


def test_the_policy_allows_this_script_alone(make_run):
    html, _ = report(make_run("ours"))
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(
        attrs["content"] for tag, attrs in Outline(html).tags if "Content-Security-Policy" in attrs.values()
    )
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy


def test_hostile_text_stays_text(make_run):
    path = make_run(f"run {HOSTILE.replace('/', '')}"[:80], expression=HOSTILE)
    config = json.loads((path / "config.json").read_text())
    config |= {"method": HOSTILE, "recipe": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    (path / "config.json").write_text(json.dumps(config))
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "kind": "train", HOSTILE: 1.0}) + "\n")
    (path / "eval" / f"{'<b>'}.json").write_text(json.dumps({"split": HOSTILE, "num": 0}))
    html, _ = report(path)
    page = Outline(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(tag == "b" and "x" in attrs for tag, attrs in page.tags)
    assert "img" not in [tag for tag, _ in page.tags]
    assert HOSTILE in page.text, "the expression is shown as it is"


def test_a_damaged_record_of_the_settings_does_not_break_the_page(make_run):
    """Half a character, and a number in place of a file's name."""
    path = make_run("ours")
    config = json.loads((path / "config.json").read_text())
    config["method"] = "l2l\ud800"
    config["config"]["segmentor"] = {"weights": 1.5}
    (path / "config.json").write_text(json.dumps(config))
    html, _ = report(path)
    assert "l2l\\ud800" in html


def test_an_empty_place_has_the_shape_of_its_picture(make_run):
    """The page's policy forbids styles of single elements."""
    html, _ = report(make_run("ours"))
    size = re.search(r'<svg viewBox="(0 0 \d+ \d+)" role="img" aria-label="image for', html)[1]
    assert f'<div class="none"><svg viewBox="{size}" aria-hidden="true">' in html
    assert "aspect-ratio" not in html


def test_every_picture_and_chart_has_words(make_run):
    html, _ = report(make_run("ours"))
    drawings = [attrs for tag, attrs in Outline(html).tags if tag == "svg"]
    assert len(drawings) > 50
    for attrs in drawings:
        assert attrs.get("aria-hidden") == "true" or (
            attrs["role"] == "img" and len(attrs["aria-label"]) > 10
        ), attrs
    focusable = [attrs for attrs in drawings if attrs.get("tabindex") == "0"]
    assert len(focusable) > 8


def test_gallery_shows_prior_prediction_and_truth_of_known_sentences(make_run):
    html, _ = report(make_run("ours"), make_run("other", seed=3))
    cards = [attrs for tag, attrs in Outline(html).tags if tag == "article"]
    assert {tag for attrs in cards for tag in attrs["data-tags"].split("|")} == {
        "best",
        "worst",
        "random",
        "most changed",
    }
    for title in ("frozen prior", "ground truth", "ours", "other"):
        assert len(re.findall(f"<figcaption><b>{title}</b>", html)) == len(cards)
    assert html.count("data:image/jpeg") == len(cards)


@pytest.mark.parametrize(
    "gone", ["store", "data", "eval", "metrics.jsonl", "split.json", "done.json", "rows"]
)
def test_missing_parts_are_named_and_the_page_is_still_written(make_run, world, tmp_path, gone, capsys):
    path = make_run("ours", store=tmp_path / "gone" if gone == "store" else None)
    if gone == "data":
        config = json.loads((path / "config.json").read_text())
        config["config"]["data"]["root"] = str(tmp_path / "nowhere")
        (path / "config.json").write_text(json.dumps(config))
    elif gone == "eval":
        shutil.rmtree(path / "eval")
    elif gone == "rows":
        (path / "eval" / "val.jsonl").unlink()
    elif gone != "store":
        (path / gone).unlink()
    html, text = report(path)
    Outline(html)
    words = {
        "store": "prior store: ",
        "data": "data set: ",
        "eval": "ours: finished, not scored: l2l eval ",
        "done.json": "ours: not finished (logged to step 398 of 400): l2l train ",
        "rows": "val.jsonl: missing",
    }
    assert words.get(gone, f"{gone}: missing") in html.partition('id="scores"')[0]
    notes = capsys.readouterr().err.splitlines()
    assert all(note.startswith(("note: left out of the report: ", "note: ours: ")) for note in notes)
    assert any(words.get(gone, f"{gone}: missing") in note for note in notes), notes
    assert gone != "store" or "not there any more" in html
    assert text


def test_broken_masks_do_not_break_the_page(make_run):
    path = make_run("ours")
    file = path / "eval" / "val.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    broken = [
        None,
        "x",
        {"size": [10**9, 10**9], "counts": "0"},
        {"size": [128, 128], "counts": "zzz"},
        {"size": ["a", 1]},
    ]
    for row, rle in zip(rows, broken * len(rows), strict=False):
        row["pred_rle"] = rle
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html, _ = report(path)
    assert "not available" in html


def test_the_same_runs_give_the_same_page(make_run):
    path = make_run("ours")
    assert report(path)[0] == report(path)[0]


def test_many_runs_stay_small(make_run):
    runs = [make_run(f"run{seed}", seed=seed, splits=("val", "testA", "testB")) for seed in range(8)]
    html, _ = report(*runs)
    assert len(html.encode()) < 8e6
    assert "Means over seeds" in html


def test_a_grid_stands_for_its_finished_runs(make_run, tmp_path):
    grid = tmp_path / "runs"
    for fraction in ("0.1", "0.05"):
        make_run(f"l2l/fraction-{fraction}/seed-9")
    make_run("l2l/fraction-0.05/seed-10")
    make_run("base/fraction-0.05/seed-9", method="supervised")
    (make_run("l2l/fraction-0.1/seed-10") / "done.json").unlink()
    (grid / "notes").mkdir()
    path, text = write_report([grid])
    assert path == grid / "report.html"
    page = " ".join(Outline(path.read_text("utf-8")).text)
    assert "Runs of a grid are left out" in page and "left out, not finished and scored: " in text
    names = re.findall(r"(?m)^(\S*seed-\S*) ", text)
    assert names == ["base/fraction-0.05/seed-9", "l2l/fraction-0.05/seed-9", "l2l/fraction-0.05/seed-10",
                     "l2l/fraction-0.1/seed-9"]  # fmt: skip


def test_a_report_of_a_grid_shows_every_method_and_says_what_it_leaves_out(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(stats, "FEWEST", 5)
    for method, quality in (("l2l", 0.8), ("supervised", 0.5)):
        for fraction in (0.01, 0.05, 0.1):
            for seed in (22, 23, 24):
                path = make_run(
                    f"{method}/fraction-{fraction}/seed-{seed}", method=method, seed=seed, quality=quality
                )
                edit(path / "config.json", fraction=fraction)
                edit(path / "split.json", hash=f"of {fraction}")
    html, _ = report(tmp_path / "runs")
    both = [
        f"{method}/fraction-0.01/seed-{seed}" for method in ("supervised", "l2l") for seed in (22, 23, 24)
    ]
    tiles = re.findall(r'<div class="tile run"><dt>([^<]*)</dt><dd>([^ ]*) <span[^>]*>([^<]*)<', html)
    means = {
        f"{row.variant}, {row.fraction:.0%} labels": row
        for row in stats.spreads(collect_runs(expand([tmp_path / "runs"])[0]))
    }
    assert [label for label, *_ in tiles] == [
        f"{method}, {share} labels" for method in ("supervised", "l2l") for share in ("1%", "5%", "10%")
    ]
    for label, mean, spread in tiles:
        assert (mean, spread) == (f"{means[label].mean:.3f}", f"± {means[label].sd:.3f}, n = 3")
    (lead,) = re.findall(r'<p class="lead">(.*?)</p>', html, flags=re.DOTALL)
    assert lead.count("<b>") == 6 and "<b>l2l, 1% labels</b> (l2l, 1% labels, seeds 22, 23, 24)" in lead
    assert re.findall(r">IoU of ([^,<]*), high first", html)[:-1] == both
    curves, length = (html[html.index(f'id="{at}"') : html.index(f'id="{to}"')] for at, to in (
        ("curves", "length"), ("length", "prior")))  # fmt: skip
    for section in (curves, length):
        assert "8 of 18 runs are shown here" in section and "left out are 10" in section
        (left_out,) = re.findall(r"left out are 10</summary>([^<]*)</details>", section)
        assert len(left_out.split(", ")) == 10 and not set(left_out.split(", ")) & set(both)
    assert all(name in curves[curves.index("</details>") :] for name in both)
    assert html.count("6 of 18 runs are shown here") == 1  # in the gallery

    differences = re.findall(r'<tr><th scope="row">(\S+) − (\S+)</th><td>val</td>', html)
    assert differences == [
        (f"l2l/{cell}", f"supervised/{cell}")
        for cell in (f"fraction-{f}/seed-{s}" for f in (0.01, 0.05, 0.1) for s in (22, 23, 24))
    ]


def test_a_grid_is_summed_up_by_its_own_names_above_its_runs(make_run, tmp_path):
    for method, quality in (("l2l", 0.9), ("supervised", 0.5)):
        for seed in (22, 23):
            path = make_run(f"{method}/fraction-0.05/seed-{seed}", method=method, seed=seed, quality=quality)
            edit(path / "config.json", overrides=["steps=4", "fraction=0.05", f"seed={seed}"])
    labels = {"l2l": "L2L <ours>", "supervised": "supervised"}
    (tmp_path / "runs" / "grid.json").write_text(json.dumps({"cells": [], "labels": labels}))
    html, _ = report(tmp_path / "runs")
    start = html.index("<h3>Means over seeds</h3>")
    assert start < html.index("<h3>val</h3>")
    table = html[start : html.index("</table>", start)]
    assert re.findall(r'<tr><th scope="row">([^<]*)</th>', table) == ["supervised", "L2L &lt;ours&gt;"]
    assert '<th scope="col">method</th>' in table and "steps=4" not in table
    means = [
        cells[2:5] for cells in (re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table.split("<tr>")[2:])
    ]
    scores = [json.loads((tmp_path / "runs/l2l/fraction-0.05" / f"seed-{seed}/eval/val.json").read_text())["original"]
              for seed in (22, 23)]  # fmt: skip
    assert means[1][0] == f"{(scores[0]['oiou'] + scores[1]['oiou']) / 2:.3f}"
    assert means[1][2] == f"{(scores[0]['miou'] + scores[1]['miou']) / 2:.3f}"


def test_runs_of_other_labelled_images_are_not_subtracted(make_run):
    runs = [make_run("base", method="supervised"), make_run("ours")]
    assert "ours − base" in report(*runs)[0]
    edit(runs[1] / "split.json", hash="another draw")
    html, _ = report(*runs)
    assert "ours − base" not in html and "runs are shown here" not in html


def test_a_run_named_twice_counts_once(make_run, tmp_path):
    cells = [make_run(f"l2l/fraction-0.1/seed-{seed}") for seed in (-1, 9)]
    (make_run("l2l/fraction-0.1/seed-10") / "done.json").unlink()
    grid = tmp_path / "runs"
    assert expand([grid, cells[1], grid / "l2l" / ".." / "l2l" / "fraction-0.1" / "seed--1"])[0] == cells
    unfinished = cells[0].with_name("seed-10")
    assert expand([grid, unfinished]) == ([*cells, unfinished], [])  # asked for by name


def test_a_folder_of_neither_runs_nor_a_grid_is_refused(make_run, tmp_path):
    with pytest.raises(DataError, match="no config.json.*no runs in it"):
        write_report([tmp_path])
    (make_run("l2l/fraction-0.1/seed-10") / "done.json").unlink()
    with pytest.raises(DataError, match="none of the 1 runs of this grid is finished and scored"):
        write_report([tmp_path / "runs"])


def test_an_unwritable_target_is_a_plain_error(make_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be written"):
        write_report([make_run("ours")], tmp_path / "file" / "report.html")


def test_expressions_have_their_own_direction(make_run):
    html, _ = report(make_run("ours"))
    cards = html.count('<article class="card"')
    assert cards and html.count('<h3 dir="auto">') == cards
    assert "Multimodal model: " in html and "Large model" not in html


def test_scores_stand_beside_the_names(make_run):
    """On a narrow screen a table shows its first columns."""
    html, _ = report(make_run("ours"), make_run("other", seed=23))
    rows = re.findall(r'<tr class="run"><th scope="row">ours</th>\s*<td class="num">(\S*)</td>', html)
    assert rows and all(float(row) for row in rows)
    assert html.index('class="group">original image size') < html.index('class="about">method')


def test_the_prior_has_one_colour_and_no_run_has_it():
    look = (Path(shared.__file__).parent / "look.css").read_text()
    style = (Path(report_module.__file__).parent / "assets" / "style.css").read_text()
    (colour,) = re.findall(r"--prior: (#\w+);", look)
    assert colour not in re.findall(r"--s\d: (#\w+);", look)
    for rule in (
        ".tile.prior",
        f".c{PRIOR_STYLE}",
        f".m{PRIOR_STYLE}",
        ".dot-prior",
        ".guide",
        ".prior-line",
    ):
        (body,) = re.findall(rf"{re.escape(rule)} {{ ([^}}]*) }}", style)
        assert "var(--prior)" in body, rule
    assert tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) == PRIOR_RGB


def test_true_masks_are_spoken_of_only_where_one_is_shown(make_run, world, monkeypatch):
    sample = next(iter(load_refer(world.data, "refshapes", "unc").samples()))
    mask_HW = np.ones((8, 8), bool)
    item = Taught(sample=sample, prior_of="", weak_HW=mask_HW, target_HW=mask_HW, foreground_HW=mask_HW,
                  background_HW=~mask_HW)  # fmt: skip
    monkeypatch.setattr(Sources, "taught", lambda self, run, most: [item])
    words = "Their true masks are shown here only"
    assert words in report(make_run("b"))[0]
    monkeypatch.setattr(DataSource, "truth", lambda self, sample: None)
    html, _ = report(make_run("c"))
    assert words not in html and "What c was taught from" in html


def test_commands_are_quoted_for_the_shell(make_run):
    html, _ = report(make_run("ours"))
    assert "--set &#39;data.root=a folder; rm -rf $HOME&#39;" in html
