"""The files are standard Zarr v3: zarr-python reads ours, we read zarr-python's, and the bytes agree."""

import json
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec

from shared.errors import DataError
from shared.store.layout import array_metadata, group_metadata, read_header
from shared.store.schema import FieldSpec, prior_fields
from shared.store.shardfile import MISSING, crc32c, decode_chunk, encode_shard, parse_index
from tests.shared.store import store_factory


def test_zarr_python_reads_every_field_without_a_warning(full_store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(full_store, mode="r")
        assert sorted(name for name, _ in group.arrays()) == sorted(
            spec.name for spec in store_factory.FIELDS
        )
        for spec in store_factory.FIELDS:
            array = group[spec.name]
            assert array.dtype == spec.numpy_dtype
            np.testing.assert_array_equal(array[:], store_factory.expected(spec.name), err_msg=spec.name)
    assert group.attrs["fingerprint"] == store_factory.ATTRS["fingerprint"]
    assert group.attrs["kind"] == "l2l-priors" and group.attrs["schema_version"] == 2


def test_zarr_python_reads_single_arrays_and_compressed_proposals(tmp_path):
    path = store_factory.fill(
        store_factory.create(tmp_path / "z.zarr", prior_fields(8, compress_proposal=True))
    )
    array = zarr.open_array(path / "proposal", mode="r")
    np.testing.assert_array_equal(array[:], store_factory.expected("proposal"))
    assert array.chunks == (1, 8, 8) and array.shards == (512, 8, 8)


def test_a_flipped_byte_is_an_error_in_zarr_python_too(full_store):
    file = full_store / "proposal" / "c.1.0.0"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="(?i)checksum|crc"):
        zarr.open_array(full_store / "proposal", mode="r")[512:1024]


def _by_zarr(spec: FieldSpec, rows: np.ndarray, shard_rows: int, step: int):
    """Metadata and shard files that zarr-python writes for the same array."""
    memory: dict = {}
    array = zarr.create_array(
        zarr.storage.MemoryStore(memory),
        shape=rows.shape,
        dtype=rows.dtype,
        chunks=(step, *spec.row_shape),
        shards=(shard_rows, *spec.row_shape),
        compressors=([ZstdCodec(level=1)] if spec.compress else []) + [Crc32cCodec()],
        fill_value=np.nan if spec.dtype.startswith("float") else 0,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    array[:] = rows
    return {key: value.to_bytes() for key, value in memory.items()}


@pytest.mark.parametrize("num_rows", [4, 8, 6])
@pytest.mark.parametrize("compress", [False, True])
def test_shard_bytes_equal_those_of_zarr_python(num_rows, compress):
    spec = FieldSpec(name="x", dtype="int32", row_shape=(3, 2), chunk="row", compress=compress)
    rows = np.arange(1, 1 + num_rows * 6, dtype="<i4").reshape(num_rows, 3, 2)
    theirs = _by_zarr(spec, rows, 4, 1)
    for shard, first in enumerate(range(0, num_rows, 4)):
        assert encode_shard(rows[first : first + 4], spec, 4, 1) == theirs[f"c.{shard}.0.0"]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("compress", [False, True])
def test_metadata_say_what_zarr_python_says(tmp_path, dtype, compress):
    spec = FieldSpec(name="x", dtype=dtype, row_shape=(3,), chunk="row", compress=compress)
    path = tmp_path / "s.zarr"
    store_factory.create_store(path, num_rows=700, fields=(spec,), attrs={"fingerprint": "f"})
    ours = array_metadata(read_header(path), "x")
    theirs = json.loads(_by_zarr(spec, np.ones((700, 3), dtype), 512, 1)["zarr.json"])
    assert group_metadata(read_header(path))["consolidated_metadata"]["metadata"] == {"x": ours}
    assert ours["dimension_names"] == ["row", "x_1"]
    names = {"dimension_names": None}
    assert ours | names == theirs | names


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(["uint8", "int32", "int64", "float16", "float32"]),
    row_shape=st.sampled_from([(), (1,), (3,), (2, 5)]),
    chunk=st.sampled_from(["row", "shard"]),
    compress=st.booleans(),
    num_rows=st.integers(1, 12),
    seed=st.integers(0, 2**16),
)
def test_a_shard_survives_encoding(dtype, row_shape, chunk, compress, num_rows, seed):
    spec = FieldSpec(name="x", dtype=dtype, row_shape=row_shape, chunk=chunk, compress=compress)
    raw = np.random.default_rng(seed).integers(0, 256, num_rows * spec.row_bytes).astype(np.uint8)
    rows = raw.view(spec.numpy_dtype).reshape(num_rows, *row_shape)
    step = 1 if chunk == "row" else 12
    data = np.frombuffer(encode_shard(rows, spec, 12, step), np.uint8)
    index = parse_index(data, 12 // step, "file")
    used = -(-num_rows // step)
    assert (index[:used, 0] != MISSING).all() and (index[used:] == MISSING).all()
    got = [decode_chunk(data[int(b) : int(b + n)], spec, step, "chunk") for b, n in index[:used]]
    assert np.concatenate(got)[:num_rows].tobytes() == rows.tobytes()


@pytest.mark.parametrize("compress", [False, True])
def test_every_flipped_bit_of_a_shard_is_found_by_reading_it(compress):
    spec = FieldSpec(name="x", dtype="uint8", row_shape=(5,), chunk="row", compress=compress)
    rows = np.arange(15, dtype=np.uint8).reshape(3, 5)
    good = encode_shard(rows, spec, 4, 1)
    for position in range(len(good)):
        bad = np.frombuffer(good, np.uint8).copy()
        bad[position] ^= 1 << (position % 8)
        with pytest.raises(DataError):
            for begin, length in parse_index(bad, 4, "file")[:3]:
                decode_chunk(bad[int(begin) : int(begin + length)], spec, 1, "chunk")


def test_a_shard_cut_short_is_refused():
    spec = FieldSpec(name="x", dtype="uint8", row_shape=(5,), chunk="row")
    good = np.frombuffer(encode_shard(np.ones((4, 5), np.uint8), spec, 4, 1), np.uint8)
    for length in range(len(good)):
        with pytest.raises(DataError):
            parse_index(good[:length], 4, "file")


@pytest.mark.parametrize(
    ("begin", "length"),
    [pytest.param(2**63, 9, id="negative"), pytest.param(0, 3, id="shorter than a checksum"),
     pytest.param(28, 9, id="into the index"), pytest.param(2**40, 9, id="far beyond")],
)  # fmt: skip
def test_an_index_that_points_out_of_the_chunks_is_refused(begin, length):
    """Its own checksum is right, as that of a writer that counted wrong would be."""
    spec = FieldSpec(name="x", dtype="uint8", row_shape=(5,), chunk="row")
    chunks = encode_shard(np.ones((4, 5), np.uint8), spec, 4, 1)[:36]
    index = np.array([[begin, length], [9, 9], [18, 9], [27, 9]], "<u8").tobytes()
    file = chunks + index + crc32c(index).to_bytes(4, "little")
    with pytest.raises(DataError, match="file: the shard index points outside the file"):
        parse_index(np.frombuffer(file, np.uint8), 4, "file")


@pytest.mark.parametrize("compress", [False, True])
def test_a_chunk_of_another_size_is_refused(compress):
    spec = FieldSpec(name="x", dtype="int32", row_shape=(3,), compress=compress)
    file = np.frombuffer(encode_shard(np.ones((4, 3), np.int32), spec, 4, 4), np.uint8)
    ((begin, length),) = parse_index(file, 1, "file").tolist()
    with pytest.raises(DataError, match="chunk: 48 bytes stored, 60 expected"):
        decode_chunk(file[begin : begin + length], spec, 5, "chunk")
