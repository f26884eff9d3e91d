"""Reading: equal rows, refusals that say what to do, processes."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import DataError
from shared.store.layout import read_header
from shared.store.publish import file_entry, seal, unseal
from shared.store.reader import PriorStore
from shared.store.schema import prior_fields
from shared.store.shardfile import encode_shard
from shared.store.writer import pending_shards, write_shard
from tests.shared.store import store_factory


def test_columns_and_batches_equal_what_was_written(full_store):
    store = PriorStore(full_store, store_factory.ATTRS["fingerprint"])
    rows = np.array([1199, 0, 511, 512, 0, 1024, 700])
    for spec in store_factory.FIELDS:
        want = store_factory.expected(spec.name)
        got = store.batch(spec.name, rows)
        assert got.dtype == spec.numpy_dtype
        np.testing.assert_array_equal(got, want[rows], err_msg=spec.name)
        np.testing.assert_array_equal(store.column(spec.name), want, err_msg=spec.name)
    assert store.is_complete and store.done_shards == [0, 1, 2] and len(store) == 1200
    assert store.batch("proposal", []).shape == (0, 8, 8)


def test_compressed_proposals_read_the_same(tmp_path):
    path = store_factory.fill(
        store_factory.create(tmp_path / "z.zarr", prior_fields(8, compress_proposal=True))
    )
    rows = [5, 1100, 5, 600]
    np.testing.assert_array_equal(
        PriorStore(path).batch("proposal", rows), store_factory.expected("proposal")[rows]
    )


@pytest.fixture(scope="module")
def module_store(tmp_path_factory):
    path = store_factory.create(tmp_path_factory.mktemp("reader") / "m.zarr")
    return (
        PriorStore(store_factory.fill(path)),
        store_factory.expected("proposal"),
        store_factory.expected("status"),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 1199), max_size=40))
def test_any_batch_equals_indexing(module_store, rows):
    store, proposals, status = module_store
    rows = np.array(rows, np.int64)
    np.testing.assert_array_equal(store.batch("proposal", rows), proposals[rows])
    np.testing.assert_array_equal(store.batch("status", rows), status[rows])


def test_batches_belong_to_the_caller_and_columns_do_not(module_store):
    store, proposals, _ = module_store
    batch = store.batch("proposal", [3])
    batch[:] = 0
    np.testing.assert_array_equal(store.batch("proposal", [3])[0], proposals[3])
    small = store.batch("num_tokens", [3])
    small[:] = -1
    assert store.batch("num_tokens", [3])[0] != -1
    with pytest.raises(ValueError, match="read-only"):
        store.column("status")[0] = 9


def test_identity_is_the_sample_id(full_store):
    store = PriorStore(full_store)
    ids = store_factory.sample_ids()
    assert store.sample_ids == ids
    assert store.row_of(ids[777]) == 777
    np.testing.assert_array_equal(store.rows_of([ids[9], ids[2], ids[9]]), [9, 2, 9])
    assert store.texts("expression", [1, 2, 3]) == list(store_factory.EXPRESSIONS[1:])
    with pytest.raises(
        DataError,
        match=r"a\.zarr: no row for sample 'shapes\.unc\.99999'; it holds 1200 pairs of shapes \(unc\)",
    ):
        store.rows_of([ids[0], "shapes.unc.99999"])


def test_status_counts_count_every_row(full_store):
    counts = PriorStore(full_store).status_counts()
    codes = store_factory.expected("status")
    assert counts == {
        "ok": int((codes == 1).sum()),
        "multiple": int((codes == 2).sum()),
        "clipped": int((codes == 3).sum()),
        "no_box": int((codes == 4).sum()),
    }


@pytest.mark.parametrize("name", ["proposal", "status", "raw_text"])
def test_an_unmarked_shard_is_refused_though_its_files_are_there(full_store, name):
    (full_store / "done" / "1.json").unlink()
    store = PriorStore(full_store)
    np.testing.assert_array_equal(store.batch(name, [0, 1199]), store_factory.expected(name)[[0, 1199]])
    refusal = r"a\.zarr: shard 1 \(rows 512 to 1023\) is not finished; run `l2l priors run`"
    with pytest.raises(DataError, match=refusal):
        store.batch(name, [0, 600])
    with pytest.raises(DataError, match=refusal):
        store.column(name)
    assert not store.is_complete and store.done_shards == [0, 2]
    with pytest.raises(DataError, match="1 of 3 shards are not finished"):
        store.require_complete()


def test_static_fields_of_an_unfinished_store_can_be_read(empty_store):
    store = PriorStore(empty_store)
    assert store.sample_ids == store_factory.sample_ids()
    assert store.status_counts() == {}


def test_a_shard_finished_later_is_seen(empty_store):
    store = PriorStore(empty_store)
    for name in ("proposal", "status"):
        with pytest.raises(DataError, match="shard 0 .* is not finished"):
            store.batch(name, [3])
    write_shard(empty_store, 0, store_factory.shard_arrays(0), {})
    for name in ("proposal", "status"):
        np.testing.assert_array_equal(store.batch(name, [3])[0], store_factory.expected(name)[3])


def test_a_foreign_fingerprint_is_refused(full_store):
    with pytest.raises(DataError, match="fingerprint 0123456789abcdef, expected ffff"):
        PriorStore(full_store, "ffff")


@pytest.mark.parametrize(
    "name", ["zarr.json", "manifest.json", "done/0.json", "proposal/c.0.0.0", "status/c.0", "sample_id/c.0.0"]
)
def test_a_file_that_cannot_be_read_is_named(full_store, name):
    """Whatever the reason; a folder stands for a file that is somebody else's."""
    (full_store / name).unlink()
    (full_store / name).mkdir()
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(Is a directory\)"):
        store = PriorStore(full_store)
        for field in ("sample_id", "status", "proposal"):
            store.batch(field, [0])
    if name == "done/0.json":
        assert 0 in pending_shards(full_store)


def test_no_store_is_refused(tmp_path):
    with pytest.raises(DataError, match="no prior store here"):
        PriorStore(tmp_path)
    (tmp_path / "zarr.json").write_text(json.dumps({"attributes": {"kind": "else"}}))
    with pytest.raises(DataError, match="kind is 'else'"):
        PriorStore(tmp_path)
    (tmp_path / "zarr.json").write_text('{"attributes": {"kind": "l2l-priors", "schema_version": 3}}')
    with pytest.raises(DataError, match="schema version 3"):
        PriorStore(tmp_path)
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        PriorStore(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"shard_rows": 256}, {"num_rows": 0}, {"fingerprint": 7}, {"fields": 3}, {"static_fields": None}],
)
def test_attributes_that_this_code_cannot_read_are_refused(full_store, change):
    """Shards of other rows would give the rows of other samples."""
    group = json.loads((full_store / "zarr.json").read_text())
    group["attributes"] |= change
    (full_store / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(DataError, match=r"zarr\.json: damaged or foreign attributes.*priors verify --repair"):
        read_header(full_store)


@pytest.mark.parametrize("rows", [[-1], [1200], [0, 5000]])
def test_rows_outside_the_store_are_refused(full_store, rows):
    for name in ("proposal", "status"):
        with pytest.raises(DataError, match=r"leave the store's 0\.\.1199"):
            PriorStore(full_store).batch(name, rows)
    with pytest.raises(DataError, match="no field 'masks'"):
        PriorStore(full_store).batch("masks", [0])


def _flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 16
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "position", "name", "message"),
    [
        ("proposal/c.1.0.0", 68 * 88 + 5, "proposal", "row 88 of shard 1: stored data fail their checksum"),
        ("proposal/c.1.0.0", -9, "proposal", "shard index fails its checksum"),
        ("status/c.1", 88, "status", "damaged"),
        ("sample_id/c.0.0", 40, "sample_id", "damaged"),
        ("done/1.json", 30, "status", "damaged"),
        ("done/1.json", 30, "proposal", "damaged"),
    ],
)
def test_damage_is_met_with_file_and_remedy(full_store, file, position, name, message):
    _flip(full_store / file, position)
    with pytest.raises(DataError, match=message) as caught:
        PriorStore(full_store).batch(name, [600])
    assert file in str(caught.value) and "l2l priors verify --repair" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_headers_are_met_on_opening(full_store):
    (full_store / "zarr.json").write_text((full_store / "zarr.json").read_text().replace('"tiny"', '"tinz"'))
    with pytest.raises(DataError, match=r"zarr\.json: damaged"):
        PriorStore(full_store)


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
@pytest.mark.parametrize("name", ["proposal", "status"])
def test_a_marked_shard_with_a_broken_file_is_refused(full_store, name, damage):
    file = next((full_store / name).glob("c.1*"))
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: -20 if damage == "cut" else 0])
    with pytest.raises(DataError, match="c\\.1.*l2l priors verify --repair"):
        PriorStore(full_store).batch(name, [600])


def test_a_whole_file_of_fewer_rows_is_refused(full_store):
    """Its checksums are right; even a mark that names its length does not make up for a row."""
    file, mark = full_store / "proposal" / "c.1.0.0", full_store / "done" / "1.json"
    spec = next(spec for spec in store_factory.FIELDS if spec.name == "proposal")
    short = encode_shard(store_factory.shard_arrays(1)["proposal"][:511], spec, 512, 1)
    file.write_bytes(short)
    with pytest.raises(DataError, match=rf"c\.1\.0\.0: {len(short)} bytes, {len(short) + 68} were written"):
        PriorStore(full_store).batch("proposal", [512])
    body = unseal(mark.read_bytes(), mark)
    mark.write_bytes(seal({**body, "files": {**body["files"], "proposal": file_entry(short)}}))
    with pytest.raises(DataError, match=r"c\.1\.0\.0: rows are missing, though their shard is marked"):
        PriorStore(full_store).batch("proposal", [512])


def test_pickled_by_path(full_store):
    store = PriorStore(full_store)
    store.batch("proposal", [0])
    data = pickle.dumps(store)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).batch("status", [5]), store.batch("status", [5]))


def test_a_pickled_reader_still_refuses_another_store(full_store):
    fingerprint = store_factory.ATTRS["fingerprint"]
    data = pickle.dumps(PriorStore(full_store, fingerprint))
    header = full_store / "zarr.json"
    header.write_text(header.read_text().replace(fingerprint, "f" * 16))
    with pytest.raises(DataError, match=f"fingerprint {'f' * 16}, expected {fingerprint}"):
        pickle.loads(data)


def _child_reads(store, rows, queue):
    queue.put((os.getpid(), store.batch("proposal", rows), store.batch("confidence", rows)))


def test_a_forked_child_reads_after_its_parent_did(full_store):
    store = PriorStore(full_store)
    rows = [3, 900, 1150]
    store.batch("proposal", rows)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child_reads, args=(store, rows, queue))
    child.start()
    pid, proposals, confidence = queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0 and pid != os.getpid()
    np.testing.assert_array_equal(proposals, store_factory.expected("proposal")[rows])
    np.testing.assert_array_equal(confidence, store_factory.expected("confidence")[rows])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers_read_every_row_once(full_store, method):
    from torch.utils.data import DataLoader

    store = PriorStore(full_store)
    store.batch("proposal", [0, 600, 1100])
    loader = DataLoader(
        store_factory.RowsDataset(store),
        batch_size=100,
        shuffle=True,
        num_workers=2,
        multiprocessing_context=method,
        collate_fn=list,
    )
    wanted, tokens = store_factory.expected("proposal"), store_factory.expected("num_tokens")
    seen = []
    for batch in loader:
        for row, proposal, count in batch:
            np.testing.assert_array_equal(proposal, wanted[row])
            assert count == tokens[row]
            seen.append(row)
    assert sorted(seen) == list(range(1200))


def test_reading_needs_neither_torch_nor_zarr(full_store):
    script = (
        "import sys; from shared.store import find, reader, schema, verify, writer\n"
        f"reader.PriorStore({str(full_store)!r}).batch('proposal', [0])\n"
        "heavy = {'torch', 'zarr', 'vllm', 'pandas'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
