"""The page as text: what it shows, that data are text in it, and that it asks for nothing it does not show."""

import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from shared.errors import DataError
from shared.store.schema import EXPRESSION_BYTES
from stage1_priors.inspect import write_inspection
from stage1_priors.inspect.catalogue import PAGE_ROWS, Query
from stage1_priors.inspect.page import page_numbers, render, round_marks
from stage1_priors.inspect.view import PRIOR_OPACITY, open_view
from tests.stage1_priors.inspect.hostile import HOSTILE, LONG, PROSE


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, wanted):
        return [attrs for tag, attrs in self.tags if tag == wanted]


def test_data_are_text(view):
    page = Page(render(view, Query(), embed=False))
    assert HOSTILE in page.text and PROSE in page.text
    assert not page.all("script")
    for tag, attrs in page.tags:
        assert "style" not in attrs and not [name for name in attrs if name.startswith("on")], (tag, attrs)
    found = Page(render(view, Query(text=HOSTILE), embed=False))
    assert [attrs["value"] for attrs in found.all("input") if attrs["name"] == "text"] == [HOSTILE]


def test_a_text_that_the_store_has_cut_ends_in_an_ellipsis(view):
    said = [pair.expression for pair in view.pairs(view.catalogue.select(Query()))]
    (cut,) = (one for one in said if one.endswith("…"))
    assert cut == f"{LONG[:EXPRESSION_BYTES]}…" and HOSTILE in said


def test_a_page_names_only_its_own_pictures(view):
    rows = view.catalogue.select(Query())
    seen = []
    for number in (1, 2, 3):
        page = Page(render(view, Query(page=number), embed=False))
        own = rows[(number - 1) * PAGE_ROWS : number * PAGE_ROWS].tolist()
        assert [int(attrs["data-row"]) for attrs in page.all("article")] == own
        pictures = {attrs["src"] for attrs in page.all("img")}
        allowed = {f"/image/{row}.jpg" for row in own} | {f"/prior/{row}.png" for row in own}
        assert pictures <= allowed and len(pictures) > len(own)
        assert all(attrs["alt"] for attrs in page.all("img"))
        seen += own
    assert seen == rows.tolist()


def test_a_page_beyond_the_last_is_the_last(view):
    assert "page 3 of 3" in Page(render(view, Query(page=99), embed=False)).text


def test_rows_without_a_prior_show_their_raw_text_and_no_mask(view):
    page = Page(render(view, Query(status="without a prior"), embed=False))
    assert page.text.count(PROSE) == 6 and page.text.count("no prior") == 6
    assert not [attrs for attrs in page.all("img") if attrs["src"].startswith("/prior/")]
    shapes = {f"0 0 {attrs['width']} {attrs['height']}" for attrs in page.all("img")}
    empty = [attrs["viewbox"] for attrs in page.all("svg") if attrs.get("viewbox") in shapes]
    assert len(empty) >= 6, "an empty place has the shape of the picture"


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (-2.47, -0.11, ["-2.0", "-1.5", "-1.0", "-0.5"]),
        (-0.013, 0.002, ["-0.010", "-0.005", "0.000"]),
        (0, 6, list("0123456")),
    ],
)
def test_marks_of_the_histogram_are_round(low, high, texts):
    assert [text for _, text in round_marks(low, high)] == texts


def test_embedded_page_stands_alone(store, tmp_path):
    out = tmp_path / "deep" / "page.html"
    assert write_inspection(store, out, Query(status="with a prior")) == 54
    page = Page(out.read_text("utf-8"))
    assert len(page.all("article")) == PAGE_ROWS
    assert {attrs["src"][:11] for attrs in page.all("img")} == {"data:image/"}
    assert not page.all("form") and {attrs["href"] for attrs in page.all("a")} == {"#pairs"}


def test_an_unwritable_file_is_one_line(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be written"):
        write_inspection(store, tmp_path / "file" / "page.html", Query())


def test_box_is_drawn_where_the_store_says(view):
    pair = view.pairs(np.array([1]))[0]
    norm = view.store.batch("box_xyxy_norm", [1])[0]
    np.testing.assert_allclose(pair.box_xyxy_px, norm * [60, 40, 60, 40], atol=0.006)
    html = render(view, Query(text=pair.sample_id), embed=False)
    assert f'x="{pair.box_xyxy_px[0]}" y="{pair.box_xyxy_px[1]}"' in html


def test_pictures_hold_the_image_and_the_probabilities(view):
    image = Image.open(io.BytesIO(view.image_jpeg(0)))
    assert image.size == (60, 40)
    prior = np.asarray(Image.open(io.BytesIO(view.prior_png(1))))
    np.testing.assert_allclose(prior[..., 3], view.store.batch("proposal", [1])[0] * PRIOR_OPACITY, atol=0.51)


def test_a_moved_data_set_costs_the_images_alone(store, tmp_path):
    view = open_view(store, str(tmp_path / "gone.jsonl"))
    page = Page(render(view, Query(), embed=False))
    assert "gone.jsonl" in page.text and "--root" in page.text
    assert {attrs["src"][:7] for attrs in page.all("img")} == {"/prior/"}
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        view.image_jpeg(0)


def test_page_numbers_show_the_ends_and_the_neighbours():
    assert page_numbers(1, 1) == [1]
    assert page_numbers(50, 5000) == [1, 48, 49, 50, 51, 52, 5000]
    assert page_numbers(5000, 5000) == [1, 4998, 4999, 5000]
