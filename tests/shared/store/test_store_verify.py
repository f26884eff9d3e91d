"""Verification finds every flipped byte; repair and status."""

import json
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from shared.errors import DataError
from shared.store.find import find_stores, store_path, unusable_stores
from shared.store.publish import seal, unseal
from shared.store.reader import PriorStore
from shared.store.verify import repair_store, store_status, verify_store
from shared.store.writer import create_store, pending_shards, write_shard
from tests.shared.store import store_factory


def _all_files(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_an_intact_store_is_ok_and_an_unfinished_one_too(full_store):
    assert verify_store(full_store) == {
        "ok": True,
        "bad_shards": [],
        "problems": [],
        "static_ok": True,
        "pending_shards": [],
    }
    (full_store / "done" / "0.json").unlink()
    report = verify_store(full_store)
    assert report["ok"] and report["pending_shards"] == [0]


def test_two_hundred_flipped_bytes_are_all_found(full_store):
    """One byte at a time: each file in turn, then bytes drawn evenly over the whole store."""
    draw = random.Random(11)
    files = _all_files(full_store)
    sizes = [file.stat().st_size for file in files]
    missed = []
    for trial in range(200):
        file = files[trial % len(files)] if trial < 160 else draw.choices(files, sizes)[0]
        original = file.read_bytes()
        position = draw.randrange(len(original))
        changed = bytearray(original)
        changed[position] ^= draw.randrange(1, 256)
        file.write_bytes(changed)
        report = verify_store(full_store)
        if report["ok"] or str(file) not in " ".join(report["problems"]):
            missed.append((str(file), position))
        shard = file.stem if file.parent.name == "done" else file.name.split(".")[1]
        static = file.parent.name in store_factory.static_arrays() or "spare" in file.parts
        if shard.isdecimal() and not static:
            assert report["bad_shards"] == [int(shard)], file
            assert report["static_ok"]
        else:
            assert report["bad_shards"] == [] and not report["static_ok"], file
        file.write_bytes(original)
    assert missed == []
    assert verify_store(full_store)["ok"]


@pytest.mark.parametrize("name", ["done/1.json", "manifest.json"])
def test_every_byte_of_a_sealed_file_counts(full_store, name):
    """White space included: the file must be exactly what was written."""
    file = full_store / name
    good = file.read_bytes()
    unseal(good, file)
    for more in (good + b"\n", b" " + good, good[:-1] + b',"more":0}'):
        with pytest.raises(DataError, match="damaged"):
            unseal(more, file)
    for position in range(len(good)):
        for bit in (1, 2, 32):
            bad = bytearray(good)
            bad[position] ^= bit
            with pytest.raises(DataError, match="damaged"):
                unseal(bytes(bad), file)


def test_another_writers_whole_shard_file_is_found(full_store, tmp_path):
    """Its chunks and its index pass their own checksums; only the file's checksum tells."""
    other = store_factory.create(tmp_path / "other.zarr")
    write_shard(other, 1, store_factory.shard_arrays(1, salt="other"), {})
    for name in ("proposal", "status"):
        file = next((other / name).glob("c.1*"))
        shutil.copy(file, full_store / name / file.name)
    report = verify_store(full_store)
    assert report["bad_shards"] == [1] and len(report["problems"]) == 2


@pytest.mark.parametrize("damage", ["cut", "missing", "longer"])
def test_lost_and_cut_files_are_found(full_store, damage):
    for file in _all_files(full_store):
        if file.parent.name == "done" or "spare" in file.parts:
            continue
        original = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(original[:-1] if damage == "cut" else original + b"\0")
        report = verify_store(full_store)
        assert not report["ok"] and str(file) in " ".join(report["problems"]), file
        file.write_bytes(original)


def test_a_mark_from_another_store_or_shard_is_not_believed(full_store, tmp_path):
    other = tmp_path / "other.zarr"
    create_store(
        other,
        num_rows=store_factory.NUM_ROWS,
        fields=store_factory.FIELDS,
        attrs={**store_factory.ATTRS, "fingerprint": "other"},
        static=store_factory.static_arrays(),
    )
    store_factory.fill(other)
    shutil.copy(other / "done" / "0.json", full_store / "done" / "0.json")
    shutil.copy(full_store / "done" / "1.json", full_store / "done" / "2.json")
    shutil.copy(full_store / "done" / "1.json", full_store / "done" / "3.json")
    report = verify_store(full_store)
    assert report["bad_shards"] == [0, 2] and any("3.json: not a mark" in line for line in report["problems"])
    assert pending_shards(full_store) == [0, 2]
    with pytest.raises(DataError, match=r"0\.json: belongs to another shard or store"):
        PriorStore(full_store).batch("status", [0])


@pytest.mark.parametrize("what", ["shard", "rows", "fingerprint", "a field less", "a field more"])
def test_a_mark_is_believed_only_if_all_it_says_is_of_its_shard(full_store, what):
    """Its checksum is right, and the files are those of its shard."""
    file = full_store / "done" / "1.json"
    body = unseal(file.read_bytes(), file)
    files = body["files"]
    change = {
        "shard": {"shard": 0},
        "rows": {"rows": 511},
        "fingerprint": {"fingerprint": "other"},
        "a field less": {"files": {name: entry for name, entry in files.items() if name != "status"}},
        "a field more": {"files": {**files, "other": files["status"]}},
    }
    file.write_bytes(seal({**body, **change[what]}))
    assert verify_store(full_store)["bad_shards"] == [1] and pending_shards(full_store) == [1]
    with pytest.raises(DataError, match=r"1\.json: (belongs to another|lists fields)"):
        PriorStore(full_store).batch("status", [600])


def test_repair_unmarks_and_a_run_completes(full_store):
    file = full_store / "proposal" / "c.1.0.0"
    data = bytearray(file.read_bytes())
    data[99] ^= 1
    file.write_bytes(data)
    report = verify_store(full_store)
    assert report["bad_shards"] == [1]
    repair_store(full_store, report["bad_shards"])
    assert pending_shards(full_store) == [1]
    store_factory.fill(full_store, range(1, 2))
    assert verify_store(full_store)["ok"]
    np.testing.assert_array_equal(
        PriorStore(full_store).column("proposal"), store_factory.expected("proposal")
    )
    with pytest.raises(DataError, match="shard 7 is outside"):
        repair_store(full_store, [7])


def test_repair_schedules_the_damaged_shards_alone(full_store):
    """Damage in two shards, in a data file of one and the mark of the other: the third is not touched."""
    untouched = {file: file.read_bytes() for file in _all_files(full_store) if file.name.startswith("c.1")}
    untouched[full_store / "done" / "1.json"] = (full_store / "done" / "1.json").read_bytes()
    for name in ("proposal/c.0.0.0", "done/2.json"):
        data = bytearray((full_store / name).read_bytes())
        data[len(data) // 2] ^= 4
        (full_store / name).write_bytes(data)
    report = verify_store(full_store)
    assert report["bad_shards"] == [0, 2]
    repair_store(full_store, report["bad_shards"])
    assert pending_shards(full_store) == [0, 2]
    assert verify_store(full_store)["ok"]  # what is left is whole
    store_factory.fill(full_store)
    assert verify_store(full_store)["pending_shards"] == []
    assert {file: file.read_bytes() for file in untouched} == untouched


def test_status_is_told_from_the_files_alone(empty_store):
    store_factory.fill(empty_store, range(2, 3))
    status = store_status(empty_store)
    codes = store_factory.shard_arrays(2)["status"]
    assert status["num_rows"] == 1200 and status["rows_done"] == 176 and not status["complete"]
    assert status["done_shards"] == [2] and status["pending_shards"] == [0, 1]
    assert status["status_counts"]["ok"] == int((codes == 1).sum())
    assert status["fingerprint_fields"] == store_factory.ATTRS["fingerprint_fields"]
    assert status["data"]["dataset"] == "shapes"
    json.dumps(status)
    store_factory.fill(empty_store)
    assert store_status(empty_store)["complete"]


def test_rows_of_other_stores_are_counted_over_all_shards(empty_store):
    infos = {"reused": {"a": 5, "b": 1}}, {}, {"reused": {"a": 2}, "answers": {"c": 4}}
    for shard, info in enumerate(infos):
        write_shard(empty_store, shard, store_factory.shard_arrays(shard), info)
    status = store_status(empty_store)
    assert status["reused"] == {"a": 7, "b": 1} and status["answers"] == {"c": 4}


def test_no_store_to_verify(tmp_path):
    with pytest.raises(DataError, match="no prior store here"):
        verify_store(tmp_path / "none")
    with pytest.raises(DataError, match="no prior store here"):
        store_status(tmp_path)
    assert not verify_store(tmp_path)["ok"]


@pytest.mark.parametrize("base", ["", "spare/"])
@pytest.mark.parametrize("name", ["zarr.json", "manifest.json", "expression/c.0.0", "status/zarr.json"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_static_files_are_put_back_from_their_second_copy(full_store, base, name, damage):
    file = full_store / (base + name)
    good = file.read_bytes()
    file.write_bytes(good[:50] + bytes([good[50] ^ 1]) + good[51:])
    if damage == "missing":
        file.unlink()
    report = verify_store(full_store)
    assert not report["static_ok"] and report["bad_shards"] == []
    repair_store(full_store, report["bad_shards"])
    assert file.read_bytes() == good and verify_store(full_store)["ok"]
    assert pending_shards(full_store) == []


def test_a_whole_manifest_of_another_store_is_found(full_store, tmp_path):
    """Its own checksum is right; only that it is not the store's other one tells."""
    other = store_factory.create(tmp_path / "other.zarr", store_factory.MINI_FIELDS)
    second = full_store / "spare" / "manifest.json"
    good = second.read_bytes()
    shutil.copy(other / "manifest.json", second)
    assert verify_store(full_store)["problems"] == [f"{second}: differs from the store's other manifest"]
    repair_store(full_store, [])
    assert second.read_bytes() == good and verify_store(full_store)["ok"]


def test_damage_in_both_copies_is_told_and_nothing_is_guessed(full_store):
    for name in ("image_id/c.0", "spare/image_id/c.0"):
        (full_store / name).write_bytes(b"0")
    with pytest.raises(DataError, match=r"a\.zarr/image_id/c\.0: damaged, and so is its second copy"):
        repair_store(full_store, [])
    assert (full_store / "image_id" / "c.0").read_bytes() == b"0"


# ---------------------------------------------------------------- finding stores


def test_stores_are_found_by_what_they_hold(tmp_path):
    made = {}
    for fingerprint, dataset, split_by, data in [
        ("aa", "refcoco", "unc", "d1"),
        ("bb", "refcoco", "google", "d2"),
        ("cc", "refcoco+", "unc", "d3"),
        ("dd", "refcoco", "unc", "d4"),
    ]:
        path = store_path(tmp_path / "cache", dataset, fingerprint)
        create_store(
            path,
            num_rows=5,
            fields=store_factory.RUN_FIELDS,
            attrs={
                "fingerprint": fingerprint,
                "data": {"dataset": dataset, "split_by": split_by, "fingerprint": data},
            },
        )
        made[fingerprint] = path
    cache = tmp_path / "cache"
    (cache / "other").mkdir()
    (cache / "other" / "zarr.json").write_text('{"attributes": {}}')
    (cache / "broken").mkdir()
    (cache / "broken" / "zarr.json").write_text("nonsense")
    (cache / ".x.zarr.h-1-00000000.partial").mkdir()
    shutil.copy(made["aa"] / "zarr.json", cache / ".x.zarr.h-1-00000000.partial" / "zarr.json")
    assert find_stores(cache) == sorted(made.values())
    assert find_stores(cache, dataset="refcoco") == [made["aa"], made["bb"], made["dd"]]
    assert find_stores(cache, dataset="refcoco", split_by="unc") == [made["aa"], made["dd"]]
    assert find_stores(cache, data_fingerprint="d3") == [made["cc"]]
    assert find_stores(cache, dataset="refcocog") == []
    assert find_stores(tmp_path / "none") == []
    assert unusable_stores(cache) == []  # none of those folders has the name of a store


def test_a_store_that_cannot_be_read_is_passed_over(full_store):
    """As when a colleague's files are for nobody else; a folder stands for such a file."""
    shutil.copytree(full_store, theirs := full_store.with_name("theirs.zarr"))
    (theirs / "zarr.json").unlink()
    (theirs / "zarr.json").mkdir()
    assert find_stores(full_store.parent) == [full_store]
    assert unusable_stores(full_store.parent) == [f"{theirs / 'zarr.json'}: cannot be read (Is a directory)"]


@pytest.mark.parametrize(
    ("dataset", "fingerprint"), [("a/b", "f"), ("..", "f"), ("", "f"), ("a", "../f"), ("a", "")]
)
def test_store_paths_stay_inside_the_cache(tmp_path, dataset, fingerprint):
    with pytest.raises(DataError, match="folder name"):
        store_path(tmp_path, dataset, fingerprint)


def test_already_complete_is_known_quickly(full_store):
    """A fresh process finds the store and knows that it is complete without importing zarr."""
    script = (
        "import sys; from shared.store.find import find_stores; from shared.store.reader import PriorStore\n"
        f"(path,) = find_stores({str(full_store.parent)!r}, dataset='shapes')\n"
        "assert PriorStore(path).is_complete; assert not {'zarr', 'numcodecs', 'torch'} & set(sys.modules)"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True)
    assert time.monotonic() - start < 20  # the command's own limit is 2 s; a loaded machine gets room
