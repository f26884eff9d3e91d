"""Writing: what is refused, what a kill or a full disk leaves, two writers at once."""

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from numcodecs.zstd import Zstd

from shared.errors import DataError
from shared.store import publish, shardfile, writer
from shared.store.layout import make_header
from shared.store.reader import PriorStore
from shared.store.schema import FieldSpec, encode_text_rows
from shared.store.verify import verify_store
from shared.store.writer import create_store, pending_shards, write_shard
from tests.shared.store import store_factory


def _files(path):
    """Every file of a store but partial ones, by relative path."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and not file.name.endswith(".partial")
    }


def _partials(path):
    return sorted(path.rglob("*.partial"))


def _has_rows(path, first, arrays):
    store = PriorStore(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(store.batch(name, np.arange(first, first + len(array))), array, name)


def _same_rows(path):
    store = PriorStore(path)
    for spec in store_factory.FIELDS:
        np.testing.assert_array_equal(store.column(spec.name), store_factory.expected(spec.name), spec.name)


def test_creating_again_changes_nothing_and_a_different_store_is_refused(full_store):
    before = _files(full_store)
    store_factory.create(full_store)
    assert _files(full_store) == before
    static = store_factory.static_arrays()
    common = {"num_rows": store_factory.NUM_ROWS, "fields": store_factory.FIELDS}
    with pytest.raises(DataError, match="holds another store, fingerprint 0123456789abcdef, not other"):
        create_store(
            full_store, attrs={**store_factory.ATTRS, "fingerprint": "other"}, static=static, **common
        )
    static["image_id"] = static["image_id"] + 1
    with pytest.raises(DataError, match="same fingerprint .* other rows, fields or static data"):
        create_store(full_store, attrs=store_factory.ATTRS, static=static, **common)
    assert _files(full_store) == before


def test_rows_that_another_zstd_packed_are_the_same_rows(full_store, monkeypatch):
    """Its output is not fixed between versions, and the package is no part of a store's identity."""
    before = _files(full_store)
    monkeypatch.setattr(shardfile, "_zstd", lambda: Zstd(level=9, checksum=True))
    static = store_factory.static_arrays()
    assert any(spec.compress for spec in store_factory.FIELDS if spec.name in static)
    store_factory.create(full_store)
    assert _files(full_store) == before
    static["sample_id"] = static["sample_id"].copy()
    static["sample_id"][3, 0] += 1
    with pytest.raises(DataError, match="same fingerprint .* other rows, fields or static data"):
        create_store(
            full_store,
            num_rows=store_factory.NUM_ROWS,
            fields=store_factory.FIELDS,
            attrs=store_factory.ATTRS,
            static=static,
        )


def test_a_repeated_sample_id_is_refused(tmp_path):
    static = store_factory.static_arrays()
    static["sample_id"][1100] = static["sample_id"][7]
    with pytest.raises(DataError, match=r"sample_id 'shapes\.unc\.\d+' is in row 7 and again in row 1100"):
        create_store(
            tmp_path / "a.zarr",
            num_rows=1200,
            fields=store_factory.FIELDS,
            attrs=store_factory.ATTRS,
            static=static,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_rows": 0}, "at least one row"),
        ({"attrs": {}}, "no fingerprint"),
        ({"attrs": {"fingerprint": "a", "kind": "x"}}, "attrs\\['kind'\\] is 'x'"),
        ({"static": {"zebra": np.zeros(3)}}, "zebra"),
        ({"static": {"x": np.zeros(3, np.int32)}}, "field x is int32"),
        ({"static": {"x": np.zeros(4, np.uint8)}}, r"field x is uint8 \(4,\), expected uint8 \(3,\)"),
        ({"fields": (FieldSpec(name="x", dtype="uint8"),) * 2}, "used twice"),
    ],
)
def test_impossible_stores_are_refused_and_leave_nothing(tmp_path, change, message):
    good = {"num_rows": 3, "fields": (FieldSpec(name="x", dtype="uint8"),), "attrs": {"fingerprint": "a"}}
    with pytest.raises(DataError, match=message):
        create_store(tmp_path / "a.zarr", **{**good, **change})
    assert list(tmp_path.iterdir()) == []


def test_wrong_shards_are_refused_and_leave_nothing(empty_store):
    before = _files(empty_store)
    good = store_factory.shard_arrays(2)
    cases = [
        (3, good, {}, r"shard 3 is outside 0\.\.2"),
        (0, good, {}, r"shard 0: field raw_text is uint8 \(176, 512\), expected uint8 \(512, 512\)"),
        (2, {**good, "confidence": good["confidence"].astype("f8")}, {}, "field confidence is float64"),
        (2, {key: value for key, value in good.items() if key != "status"}, {}, "got fields"),
        (2, {**good, "image_id": np.zeros(176, "i8")}, {}, "got fields"),
        (2, {**good, "status": good["status"] * 0}, {}, r"status codes \[0\] are not in use"),
        (2, good, {"fingerprint": "other"}, "made for fingerprint other"),
    ]
    for shard, arrays, info, message in cases:
        with pytest.raises(DataError, match=message):
            write_shard(empty_store, shard, arrays, info)
    assert _files(empty_store) == before and not _partials(empty_store)


def test_pending_shards_shrink_and_a_lost_or_cut_file_makes_one_pending(empty_store):
    assert pending_shards(empty_store) == [0, 1, 2]
    store_factory.fill(empty_store, range(1, 2))
    assert pending_shards(empty_store) == [0, 2]
    store_factory.fill(empty_store)
    assert pending_shards(empty_store) == []
    (empty_store / "status" / "c.0").unlink()
    file = empty_store / "proposal" / "c.2.0.0"
    file.write_bytes(file.read_bytes()[:-1])
    assert pending_shards(empty_store) == [0, 2]
    store_factory.fill(empty_store)
    assert pending_shards(empty_store) == []
    _same_rows(empty_store)


def test_a_finished_shard_is_rewritten_only_when_asked(full_store):
    before = _files(full_store)
    other = store_factory.shard_arrays(1, salt="other")
    write_shard(full_store, 1, other, {"worker": 9})
    assert _files(full_store) == before
    write_shard(full_store, 1, other, {"worker": 9}, overwrite=True)
    np.testing.assert_array_equal(
        PriorStore(full_store).batch("proposal", np.arange(512, 1024)), other["proposal"]
    )
    assert verify_store(full_store)["ok"]


def test_a_mark_says_who_and_what(full_store):
    mark = json.loads((full_store / "done" / "2.json").read_bytes())["body"]
    assert (mark["shard"], mark["rows"], mark["fingerprint"]) == (2, 176, store_factory.ATTRS["fingerprint"])
    assert mark["info"] == {"worker": 0} and sum(mark["status"].values()) == 176
    assert set(mark["files"]) == {spec.name for spec in store_factory.RUN_FIELDS}


# ---------------------------------------------------------------- kills


def _die_at(step, action):
    """In a forked child: SIGKILL ourselves just before the `step`-th write, fsync, rename or unlink."""
    count = 0

    def counted(original):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    os.fsync, os.replace, os.unlink = counted(os.fsync), counted(os.replace), counted(os.unlink)
    os.rename = counted(os.rename)
    writer.write_synced = publish.write_synced = counted(publish.write_synced)
    action()
    os._exit(0)


def _run_killed(step, action):
    child = multiprocessing.get_context("fork").Process(target=_die_at, args=(step, action))
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


def test_killed_at_every_step_of_a_shard(tmp_path):
    """At each system call the kill leaves the shard unmarked (or whole), and a second run completes it."""
    path = store_factory.create(tmp_path / "a.zarr", store_factory.MINI_FIELDS)
    arrays = store_factory.mini_shard(2)
    step, unmarked = 0, 0
    while True:
        step += 1
        finished = _run_killed(step, lambda: write_shard(path, 2, arrays, {}))
        assert verify_store(path)["ok"], step
        if finished:
            break
        if not (path / "done" / "2.json").exists():
            unmarked += 1
            with pytest.raises(DataError, match="shard 2 .* is not finished"):
                PriorStore(path).batch("proposal", [1100])
        if 2 in pending_shards(path):
            write_shard(path, 2, arrays, {})
        assert not _partials(path)
        _has_rows(path, 1024, arrays)
        (path / "done" / "2.json").unlink()
        for name in arrays if step % 2 else ["status"]:  # sometimes old files lie about, sometimes none
            next((path / name).glob("c.2*")).unlink()
    assert unmarked > 3 * len(arrays)
    _has_rows(path, 1024, arrays)


def test_killed_twice_in_one_shard(tmp_path):
    """The second writer dies in the same shard, earlier or later than the first; the third completes it."""
    path = store_factory.create(tmp_path / "a.zarr", store_factory.MINI_FIELDS)
    arrays = store_factory.mini_shard(2)
    for steps in ((2, 2), (3, 7), (7, 3), (6, 10), (10, 6)):
        for step in steps:
            assert not _run_killed(step, lambda: write_shard(path, 2, arrays, {}))
        assert verify_store(path)["ok"] and pending_shards(path) == [0, 1, 2]
        write_shard(path, 2, arrays, {})
        _has_rows(path, 1024, arrays)
        assert verify_store(path)["ok"] and not _partials(path)
        (path / "done" / "2.json").unlink()


def test_killed_while_creating_leaves_no_store(tmp_path):
    path = tmp_path / "a.zarr"
    step, absent = 0, 0
    while not _run_killed(step := step + 3, lambda: store_factory.create(path, store_factory.MINI_FIELDS)):
        if path.exists():
            assert verify_store(path)["ok"]
            break
        absent += 1
    assert absent > 3
    store_factory.create(path, store_factory.MINI_FIELDS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
    assert PriorStore(path).sample_ids == store_factory.sample_ids()


_WRITER = """
import sys, time
from tests.shared.store import store_factory
from shared.store.writer import pending_shards, write_shard
print("ready", flush=True)
for shard in pending_shards(sys.argv[1]):
    write_shard(sys.argv[1], shard, store_factory.shard_arrays(shard), {"worker": 0})
"""


def test_killed_at_random_moments_and_run_again(tmp_path):
    reference = _files(store_factory.fill(store_factory.create(tmp_path / "reference.zarr")))
    path = store_factory.create(tmp_path / "a.zarr")
    moments = random.Random(3)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0, 0.08))
        child.kill()
        child.wait(60)
        child.stdout.close()
        assert verify_store(path)["ok"]
    subprocess.run([sys.executable, "-c", _WRITER, str(path)], check=True, capture_output=True)
    assert _files(path) == reference and not _partials(path)


# ---------------------------------------------------------------- a machine that loses its power


def _noted(monkeypatch):
    """What is made durable, renamed and removed from here on, in order: (what, path or paths)."""
    done = []
    fsync, replace, rename, unlink = os.fsync, os.replace, os.rename, os.unlink

    def noted_fsync(descriptor):
        fsync(descriptor)
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def noted_replace(here, there):
        replace(here, there)
        done.append(("rename", str(here), str(there)))

    def noted_rename(here, there):
        rename(here, there)
        done.append(("rename", str(here), str(there)))

    def noted_unlink(path):
        unlink(path)
        done.append(("remove", str(path)))

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(os, "unlink", noted_unlink)
    return done


def test_a_shard_is_on_the_disk_before_its_mark_is(empty_store, monkeypatch):
    """What a kill cannot show: the kernel holds what was written, a machine without power does not."""
    done = _noted(monkeypatch)
    store_factory.fill(empty_store, range(1))
    place = {entry[2]: number for number, entry in enumerate(done) if entry[0] == "rename"}
    mark = str(empty_store / "done" / "0.json")
    for there, renamed in place.items():
        assert ("sync", done[renamed][1]) in done[:renamed], there
    for spec in store_factory.RUN_FIELDS:
        (file,) = (one for one in place if os.path.dirname(one) == str(empty_store / spec.name))
        assert ("sync", str(empty_store / spec.name)) in done[place[file] : place[mark]], spec.name
    assert ("sync", str(empty_store / "done")) in done[place[mark] :]


def test_a_mark_is_off_the_disk_before_its_shard_is_replaced(full_store, monkeypatch):
    done = _noted(monkeypatch)
    write_shard(full_store, 1, store_factory.shard_arrays(1, salt="other"), {}, overwrite=True)
    first = next(number for number, entry in enumerate(done) if entry[0] == "rename")
    assert done[:first].index(("remove", str(full_store / "done" / "1.json"))) < done[:first].index(
        ("sync", str(full_store / "done"))
    )


def test_a_store_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = _noted(monkeypatch)
    path = store_factory.create(tmp_path / "a.zarr")
    (named,) = (number for number, entry in enumerate(done) if entry[0] == "rename")
    partial = done[named][1]
    synced = [entry[1].removeprefix(partial) for entry in done[:named]]
    there = [path, *path.rglob("*")]
    lacking = {str(one).removeprefix(str(path)) for one in there} - set(synced)
    assert lacking == {"/done"}  # an empty folder, of which its parent's entry is all there is
    for file in (one for one in there if one.is_file()):
        folder = str(file.parent).removeprefix(str(path))
        assert folder in synced[synced.index(str(file).removeprefix(str(path))) :], file
    assert synced[-1] == "" and ("sync", str(tmp_path)) in done[named:]


# ---------------------------------------------------------------- several writers


def _write_slowly(path, shard, salt, seed):
    pause = random.Random(seed)
    original = os.fsync

    def slow(descriptor):
        time.sleep(pause.uniform(0, 0.004))
        original(descriptor)

    os.fsync = slow
    write_shard(path, shard, store_factory.shard_arrays(shard, salt), {"worker": seed})


@pytest.mark.parametrize("trial", range(4))
@pytest.mark.parametrize("agree", [True, False])
def test_two_writers_of_one_shard_leave_one_writers_shard(empty_store, trial, agree):
    context = multiprocessing.get_context("fork")
    salts = ("", "" if agree else "other")
    children = [
        context.Process(target=_write_slowly, args=(empty_store, 1, salts[number], 2 * trial + number))
        for number in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    report = verify_store(empty_store)
    assert report["ok"] and report["pending_shards"] == [0, 2]
    store = PriorStore(empty_store)
    rows = np.arange(512, 1024)
    matching = [
        all(
            np.array_equal(store.batch(name, rows), array, equal_nan=array.dtype.kind == "f")
            for name, array in store_factory.shard_arrays(1, salt).items()
        )
        for salt in salts
    ]
    assert any(matching) and not _partials(empty_store)


def test_a_late_writer_does_not_touch_a_finished_shard(empty_store, monkeypatch):
    """A writer that slept before publishing finds the mark of another and yields."""
    late = store_factory.shard_arrays(0, salt="late")
    original = writer.write_synced
    state = {"first": True}

    def overtaken(path, data):
        if state.pop("first", False):
            store_factory.fill(empty_store, range(1))
        return original(path, data)

    monkeypatch.setattr(writer, "write_synced", overtaken)
    write_shard(empty_store, 0, late, {})
    _has_rows(empty_store, 0, store_factory.shard_arrays(0))
    assert not _partials(empty_store) and verify_store(empty_store)["ok"]


def test_a_writer_that_woke_up_between_renames_leaves_a_whole_shard(empty_store, monkeypatch):
    """The worst zombie: stopped in the middle of its renames while another writer finished the shard."""
    calls = {"count": 0}
    original = type(empty_store).replace

    def replace(self, target):
        calls["count"] += 1
        if calls["count"] == 4:
            store_factory.fill(empty_store, range(1))
        return original(self, target)

    monkeypatch.setattr(type(empty_store), "replace", replace)
    write_shard(empty_store, 0, store_factory.shard_arrays(0, salt="zombie"), {})
    report = verify_store(empty_store)
    assert report["ok"] and report["pending_shards"] == [1, 2], report


def test_a_partial_file_taken_for_dead_is_written_again(empty_store, monkeypatch):
    original = writer.shard_is_done
    state = {"count": 0}

    def cleaned(header, shard):
        state["count"] += 1
        if state["count"] == 2:  # after staging, before the renames
            for partial in _partials(empty_store)[:3]:
                partial.unlink()
        return original(header, shard)

    monkeypatch.setattr(writer, "shard_is_done", cleaned)
    store_factory.fill(empty_store, range(1))
    assert verify_store(empty_store)["ok"] and pending_shards(empty_store) == [1, 2]


def test_only_partial_files_of_writers_that_are_gone_are_removed(empty_store):
    folder = empty_store / "proposal"
    living = publish.partial_path(folder / "c.0.0.0")
    host = publish._host()
    dead = folder / f".c.0.0.0.{host}-4194399-00000000.partial"
    elsewhere = folder / ".c.0.0.0.node7-4194399-00000000.partial"  # its number says nothing here
    forgotten = folder / ".c.0.0.0.node8-1-00000000.partial"
    foreign = folder / ".something.partial"
    for file in (living, dead, elsewhere, forgotten, foreign):
        file.write_bytes(b"x")
    os.utime(forgotten, (1, 1))
    pending_shards(empty_store)
    assert living.exists() and elsewhere.exists() and foreign.exists()
    assert not dead.exists() and not forgotten.exists()


# ---------------------------------------------------------------- disks


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("failing", [1, 5, 11])
def test_a_full_disk_is_told_and_survived(empty_store, monkeypatch, code, failing):
    """The n-th fsync of a shard fails as a full disk does; nothing is left, and the same call works later."""
    store_factory.fill(empty_store, range(1))
    before = _files(empty_store)
    original = os.fsync
    calls = {"count": 0}

    def full(descriptor):
        calls["count"] += 1
        if calls["count"] == failing:
            raise OSError(code, os.strerror(code))
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError) as caught:
            store_factory.fill(empty_store, range(1, 2))
    message = str(caught.value)
    assert "a.zarr: cannot write shard 1" in message and os.strerror(code) in message and "again" in message
    assert "\n" not in message and not _partials(empty_store)
    assert {name: data for name, data in _files(empty_store).items() if name in before} == before
    assert pending_shards(empty_store) == [1, 2]
    store_factory.fill(empty_store)
    _same_rows(empty_store)


_SMALL_FILES = """
import resource, sys
from tests.shared.store import store_factory
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
store_factory.fill(sys.argv[1], range(1, 2))
"""


def test_a_write_that_the_kernel_cuts_is_told_and_survived(empty_store):
    """Nothing is simulated: the process may not write files of more than 20,000 bytes, and `proposal` is larger."""
    store_factory.fill(empty_store, range(1))
    before = _files(empty_store)
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_FILES, str(empty_store), "20000"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "DataError" in done.stderr and "a.zarr: cannot write shard 1: File too large" in done.stderr
    assert _files(empty_store) == before and not _partials(empty_store)
    assert pending_shards(empty_store) == [1, 2]
    store_factory.fill(empty_store)
    _same_rows(empty_store)


def test_a_full_disk_while_creating_leaves_no_store(tmp_path, monkeypatch):
    calls = {"count": 0}
    original = os.fsync

    def full(descriptor):
        calls["count"] += 1
        if calls["count"] == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="cannot write a new store: No space left"):
            store_factory.create(tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []
    store_factory.create(tmp_path / "a.zarr")


def test_other_system_errors_are_not_hidden(empty_store, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        store_factory.fill(empty_store, range(1))


def test_one_row_is_a_store(tmp_path):
    path = tmp_path / "one.zarr"
    fields = (
        FieldSpec(name="sample_id", dtype="uint8", row_shape=(8,)),
        FieldSpec(name="x", dtype="float16", chunk="row"),
    )
    static = {"sample_id": encode_text_rows(["a.b.1"], 8)}
    create_store(path, num_rows=1, fields=fields, attrs={"fingerprint": "f"}, static=static)
    write_shard(path, 0, {"x": np.array([1.5], "f2")}, {})
    store = PriorStore(path)
    assert store.is_complete and store.column("x").tolist() == [1.5] and store.row_of("a.b.1") == 0


@pytest.mark.parametrize(
    ("num_rows", "bounds"),
    [(1, [(0, 1)]), (512, [(0, 512)]), (513, [(0, 512), (512, 513)]), (1024, [(0, 512), (512, 1024)])],
)
def test_shards_end_with_the_store(tmp_path, num_rows, bounds):
    header = make_header(tmp_path, num_rows, store_factory.FIELDS, {"fingerprint": "a"}, ())
    assert [header.shard_bounds(shard) for shard in range(header.num_shards)] == bounds
    for shard in (-1, len(bounds)):
        with pytest.raises(DataError, match=f"shard {shard} is outside"):
            header.shard_bounds(shard)
