"""Mapped files: no more than one may hold open, and read whatever the order of their chunks."""

import resource
from unittest.mock import Mock

import numpy as np
import pytest

from shared.store import mapped_rows
from shared.store.reader import PriorStore
from shared.store.schema import candidate_fields
from shared.store.writer import write_shard
from tests.shared.store import store_factory


def test_few_open_files_are_enough(full_store, monkeypatch):
    """A file that was let go of and is mapped again is known to be whole."""
    store = PriorStore(full_store)
    store._mapped.max_open = 1
    rows = [0, 600, 1100, 1, 601, 1101]
    for decoded_again in (6, 0):
        decoding = Mock(side_effect=mapped_rows.decode_chunk)
        monkeypatch.setattr(mapped_rows, "decode_chunk", decoding)
        np.testing.assert_array_equal(store.batch("proposal", rows), store_factory.expected("proposal")[rows])
        assert decoding.call_count == decoded_again
        monkeypatch.undo()
    assert len(store._mapped._shards["proposal"]) == store._mapped.num_open == 1


def test_all_fields_together_hold_no_more_files_than_one_may(tmp_path):
    """A field that comes second does not open its files on top."""
    fields = (*store_factory.FIELDS, *candidate_fields(2, 4))
    path = store_factory.create(tmp_path / "c.zarr", fields)
    info = {"fingerprint": store_factory.ATTRS["fingerprint"]}
    for shard in range(store_factory.NUM_SHARDS):
        columns = store_factory.shard_arrays(shard)
        candidates = np.full((len(columns["status"]), 2, 4, 4), shard + 1, np.uint8)
        write_shard(path, shard, columns | {"candidates": candidates}, info)
    store, rows = PriorStore(path), [0, 600, 1100]
    store._mapped.max_open = 2
    for _ in range(2):
        np.testing.assert_array_equal(store.batch("proposal", rows), store_factory.expected("proposal")[rows])
        assert store.batch("candidates", rows)[:, 0, 0, 0].tolist() == [1, 2, 3]
        assert sum(map(len, store._mapped._shards.values())) == store._mapped.num_open == 2


@pytest.mark.parametrize(
    ("wanted", "hard", "refused", "allowed", "soft"),
    [
        (300, 4096, False, 512, 1024),  # enough as it is
        (625, 4096, False, 625, 1250),
        (5000, 4096, False, 2048, 4096),
        (5000, resource.RLIM_INFINITY, False, 5000, 10000),
        (5000, 4096, True, 512, 1024),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(
    monkeypatch, wanted, hard, refused, allowed, soft
):
    limits = [(1024, hard)]

    def change(_what, new):
        if refused:
            raise OSError("not allowed")
        limits.append(new)

    monkeypatch.setattr(mapped_rows.resource, "getrlimit", lambda _what: limits[-1])
    monkeypatch.setattr(mapped_rows.resource, "setrlimit", change)
    assert mapped_rows._files_allowed(wanted) == allowed and limits[-1] == (soft, hard)


def test_chunks_in_another_order_are_read_too(full_store, monkeypatch):
    """A standard shard may hold its chunks in any order; then rows go through the index one by one."""
    wanted = store_factory.expected("proposal")
    original = mapped_rows.parse_index

    def swapped(data, num_chunks, where):
        index = original(data, num_chunks, where).copy()
        index[[0, 1]] = index[[1, 0]]
        return index

    monkeypatch.setattr(mapped_rows, "parse_index", swapped)
    np.testing.assert_array_equal(PriorStore(full_store).batch("proposal", [0, 1, 2]), wanted[[1, 0, 2]])
