"""The inspector in a real browser: pictures load, the form searches, nothing is wider than its window."""

import base64
import hashlib
import json
import re

import pytest

from stage1_priors.inspect import server, write_inspection
from stage1_priors.inspect.catalogue import PAGE_ROWS, Query
from stage1_priors.inspect.page import render
from tests.browser import NEEDS_BROWSER, browse, console, cut_off, pdf_pages
from tests.stage1_priors.inspect.hostile import HOSTILE, PROSE
from tests.stage1_priors.inspect.test_server import serving

pytestmark = NEEDS_BROWSER

DRIVER = """
addEventListener("load", () => {
  const images = Array.from(document.images);
  const form = document.querySelector("form.find");
  form.elements.text.value = "THING 1";
  form.elements.order.value = "least confident";
  const width = document.documentElement.clientWidth;
  const beyond = (box) => box.getBoundingClientRect().right > width + 0.01 && !box.closest(".scroll, pre");
  const bars = Array.from(document.querySelectorAll("svg a"));
  bars[0].focus();
  const result = {
    broken: images.filter((image) => image.complete && !image.naturalWidth).length,
    loaded: images.filter((image) => image.complete && image.naturalWidth).length,
    images: images.length,
    sent: new URLSearchParams(new FormData(form)).toString(),
    wide: Array.from(document.querySelectorAll("body *")).filter(beyond).map((box) => box.outerHTML.slice(0, 90)),
    focused: document.activeElement === bars[0],
    bars: bars.map((bar) => bar.getAttribute("aria-label")),
    rows: Array.from(document.querySelectorAll("article")).map((card) => Number(card.dataset.row)),
  };
  const answer = document.createElement("pre");
  answer.id = "result";
  answer.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(result))));
  document.body.append(answer);
});
"""


def driven(view, query, *, embed):
    """The page with the driver, which its policy is told to let run."""
    html = render(view, query, embed=embed)
    digest = base64.b64encode(hashlib.sha256(DRIVER.encode()).digest()).decode()
    html = html.replace("style-src ", f"script-src 'sha256-{digest}'; style-src ", 1)
    return html.replace("</body>", f"<script>{DRIVER}</script></body>")


@pytest.mark.parametrize("width", [1280, 420])
def test_pictures_load_and_the_form_searches(view, tmp_path, monkeypatch, width):
    monkeypatch.setattr(server, "render", driven)
    with serving(view) as port:
        results = []
        for path in ("/", None):
            path = path or "/?" + results[0]["sent"]
            window = f"--window-size={width},16000"
            document, printed = browse(f"http://127.0.0.1:{port}{path}", tmp_path / "profile", window)
            assert console(printed) == []
            answer = re.search(r'<pre id="result">([^<]*)</pre>', document)
            assert answer, "the driver did not finish"
            results.append(json.loads(base64.b64decode(answer[1])))
    first, found = results
    assert first["broken"] == found["broken"] == 0
    assert first["loaded"] == first["images"] > PAGE_ROWS
    assert first["wide"] == [] and first["focused"]
    assert sum(int(label.split(": ")[1].split()[0]) for label in first["bars"]) == 54
    wanted = Query(text="thing 1", order="least confident")
    assert found["rows"] == view.catalogue.select(wanted)[:PAGE_ROWS].tolist()


def test_data_never_run(store, tmp_path):
    page = tmp_path / "page.html"
    write_inspection(store, page, Query())
    document, printed = browse(page.as_uri(), tmp_path / "profile")
    assert console(printed) == []
    assert "<script" not in document and "onerror=alert(2)&gt;" in document
    assert HOSTILE.split()[0] not in document and PROSE.split()[0] not in document


def test_nothing_is_cut_off_on_paper(store, tmp_path):
    page = tmp_path / "page.html"
    write_inspection(store, page, Query())
    assert cut_off(page, tmp_path) == []
    assert pdf_pages(page, tmp_path) >= 1
