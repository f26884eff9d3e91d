"""The page in a real browser: no error on its console, charts drawn, filter and sort work, data never run."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from stage2_train.report import stats, write_report
from tests.browser import NEEDS_BROWSER, browse, console, cut_off, pdf_pages
from tests.stage2_train.report.fake_runs import HOSTILE

pytestmark = NEEDS_BROWSER

DRIVER = """
const form = document.querySelector("form.filter");
const cards = () => Array.from(document.querySelectorAll("article.card[data-order]")).filter((card) => !card.hidden);
const set = (name, value) => {
  form.elements[name].value = value;
  form.elements[name].dispatchEvent(new Event("input", { bubbles: true }));
};
const result = { all: cards().length, said: form.querySelector("output").textContent };
set("tag", "worst");
result.worst = cards().map((card) => card.dataset.tags);
set("tag", "");
set("sort", "iou0 up");
result.rising = cards().map((card) => Number(card.dataset.iou0));
set("text", "ALERT(1)");
result.found = cards().map((card) => card.dataset.text);
const plot = document.querySelector("figure.chart[data-hover] svg.plot");
plot.dispatchEvent(new KeyboardEvent("keydown", { key: "End" }));
result.readout = plot.closest("figure").querySelector(".readout").textContent;
const paths = Array.from(document.querySelectorAll("path.line"));
result.drawn = paths.filter((path) => path.getTotalLength() > 50).length;
result.lines = paths.length;
const images = Array.from(document.querySelectorAll("defs image"));
result.pictures = images.filter((image) => image.getBBox().width > 0).length;
const width = document.documentElement.clientWidth;
const beyond = (box) => box.getBoundingClientRect().right > width + 0.01 && !box.closest(".scroll, pre, .defs");
result.wide = Array.from(document.querySelectorAll("body *")).filter(beyond).map((box) => box.outerHTML.slice(0, 90));
const reach = document.documentElement.scrollWidth;
if (reach > width + 1) result.wide.push(`page: ${reach} over ${width}`);
const answer = document.createElement("pre");
answer.id = "result";
answer.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(result))));
document.body.append(answer);
"""


@pytest.fixture
def page(make_run, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(stats, "FEWEST", 5)
    runs = [
        make_run("ours", expression=HOSTILE),
        make_run("base", method="supervised", quality=0.4, expression=HOSTILE),
    ]
    # A notice names its path: one long word that must not widen the page.
    runs.append(make_run("-".join(["a-name-without-a-space"] * 6), expression=HOSTILE))
    return write_report(runs, tmp_path / "report.html")[0]


def test_page_runs_without_an_error_and_runs_no_data(page, tmp_path):
    document, printed = browse(page.as_uri(), tmp_path / "profile")
    assert console(printed) == []
    assert re.search(r"<html[^>]* class=\"js\"", document), "the page's own script ran"
    assert document.count("<script") == 1
    assert "alert(1)" in document


def test_console_check_can_fail(tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<!doctype html><script>nothing.here()</script>")
    assert console(browse(broken.as_uri(), tmp_path / "profile")[1])


@pytest.mark.parametrize("width", [1280, 420])
def test_charts_filter_sort_and_keys(page, tmp_path, width):
    html = page.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(DRIVER.encode()).digest()).decode()
    html = html.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    html = html.replace("</body>", f"<script>{DRIVER}</script></body>")
    driven = tmp_path / "driven.html"
    driven.write_text(html, "utf-8")
    document, printed = browse(driven.as_uri(), tmp_path / "profile", f"--window-size={width},900")
    assert console(printed) == []
    answer = re.search(r'<pre id="result">([^<]*)</pre>', document)
    assert answer, "the driver did not finish"
    result = json.loads(base64.b64decode(answer[1]))
    assert result["said"] == f"{result['all']} of {result['all']} shown"
    assert 0 < len(result["worst"]) < result["all"]
    assert all("worst" in tags.split("|") for tags in result["worst"])
    assert len(result["rising"]) == result["all"] and result["rising"] == sorted(result["rising"])
    assert set(result["found"]) == {HOSTILE}
    assert result["readout"].startswith("optimiser step 360: ")
    assert result["drawn"] >= result["lines"] - 4 > 10, "lines are drawn"
    assert result["pictures"] == result["all"]
    assert result["wide"] == [], "the page is wider than its window"


def test_nothing_is_cut_off_on_paper(page, tmp_path):
    assert cut_off(page, tmp_path) == []
    assert pdf_pages(page, tmp_path) > 1


def test_the_check_of_paper_can_fail(page, tmp_path):
    wide = tmp_path / "wide.html"
    wide.write_text(
        page.read_text("utf-8").replace("<main", '<table style="width: 900px"><tr><td>x</table><main', 1)
    )
    assert cut_off(wide, tmp_path)
