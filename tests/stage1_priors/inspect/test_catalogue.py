"""What is found, counted and sorted, against plain loops over the store."""

import numpy as np
import pytest

from shared.errors import DataError
from shared.store.reader import PriorStore
from stage1_priors.inspect.catalogue import NUM_BINS, Catalogue, Query
from tests.shared.store.store_factory import create, fill


def rows_with(view, words):
    """Rows whose expression, in lower case, holds the words."""
    texts = view.store.texts("expression", range(60))
    return [row for row, text in enumerate(texts) if words in text.lower()]


def test_counts_and_selection(view):
    catalogue = view.catalogue
    assert catalogue.status_counts() == {"ok": 54, "no_box": 6}
    assert catalogue.select(Query()).tolist() == list(range(60))
    green = rows_with(view, "green")
    assert len(green) == 6 and catalogue.select(Query(status="without a prior")).tolist() == green
    split = view.store.column("split")
    assert catalogue.select(Query(status="no_box", split="val")).tolist() == [
        row for row in green if split[row]
    ]
    assert len(catalogue.select(Query(status="with a prior"))) == 54


def test_search_is_blind_to_case_and_finds_ids(view):
    found = view.catalogue.select(Query(text="tHING 1")).tolist()
    assert len(found) == 10 and found == rows_with(view, "thing 1")
    sample_id = view.store.sample_ids[7]
    assert 7 in view.catalogue.select(Query(text=sample_id))
    assert view.catalogue.select(Query(text="<SCRIPT>")).tolist() == rows_with(view, "<script>")
    assert not len(view.catalogue.select(Query(text="no such words")))


def test_orders_put_unknown_confidences_last(view):
    value = view.store.column("confidence").astype(np.float64)
    for order, sign in (("least confident", 1), ("most confident", -1)):
        rows = view.catalogue.select(Query(order=order))
        assert sorted(rows) == list(range(60))
        assert np.isnan(value[rows[-6:]]).all()
        assert (np.diff(sign * value[rows[:-6]]) >= 0).all()


def test_every_bar_of_the_histogram_holds_as_many_rows_as_its_range(view):
    found = view.catalogue.histogram()
    assert found.num_unknown == 6 and found.count_K.sum() == 54
    for at, count in enumerate(found.count_K):
        high = found.edge_K1[at + 1] if at + 1 < NUM_BINS else None
        assert len(view.catalogue.select(Query(low=found.edge_K1[at], high=high))) == count


def test_unfinished_rows_are_left_out(tmp_path):
    store = PriorStore(fill(create(tmp_path / "half.zarr"), range(1, 3)))
    catalogue = Catalogue(store)
    assert catalogue.select(Query()).tolist() == list(range(512, 1200))
    with pytest.raises(DataError, match="no shard is finished"):
        Catalogue(PriorStore(create(tmp_path / "none.zarr")))


def test_address_and_parse_are_inverse():
    from urllib.parse import parse_qs, urlsplit

    query = Query(
        text="a&b=<c>", status="no_box", split="val", low=-1.25, high=-0.1, order="most confident", page=3
    )
    back = Query.parse(parse_qs(urlsplit(query.address(page=3)).query))
    assert back == query
    assert Query().address() == "/"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"page": ["x"]}, "page 'x'"),
        ({"page": ["0"]}, "page 0"),
        ({"low": ["nan"]}, "low nan"),
        ({"status": ["fine"]}, "status 'fine'"),
        ({"order": ["up"]}, "order 'up'"),
        ({"rows": ["1"]}, "unknown parameter 'rows'"),
    ],
)
def test_impossible_queries_are_named(given, said):
    with pytest.raises(DataError, match=said):
        Query.parse(given)


def test_a_foreign_split_is_named(view):
    with pytest.raises(DataError, match="split 'test' is none of train, val"):
        view.catalogue.select(Query(split="test"))
