"""The benches' figures, table and chart, and what other ways to keep rows give back."""

import importlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parent
PEERS = ("store", "memmap", "hdf5", "litdata", "mds", "webdataset", "npz")


@pytest.fixture
def module(monkeypatch):
    """Import a file of this folder, as a bench does."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


def record(name, value, **fields):
    plain = {"unit": "x", "low": value, "high": value, "target": "", "note": "", "of": {}}
    return json.dumps({"bench": "some", "name": name, "value": value, **plain, **fields})


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(BENCH.parents[1])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_table_has_ratios_and_aims_and_the_last_of_two_readings(module, tmp_path, capsys):
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("\n".join([record("fast", 3.0), record("rate", 5.0, unit="rows/s"), "for people"]))
    second.write_text(
        "\n".join(
            [
                record("fast", 4.0, low=3.5, high=4123.0, target=">= 10"),
                record("seconds", 1.5, unit="s", target="<= 2"),
            ]
        )
    )
    assert module("table").main([str(first), str(second), "--json", str(tmp_path / "all.json")]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows[2:] == [
        ["some", "fast", "4 x", "3.5 to 4,123", ">= 10", "MISSED", ""],
        ["some", "seconds", "1.5 s", "", "<= 2", "met", ""],
    ]
    names = [one["name"] for one in json.loads((tmp_path / "all.json").read_text())["figures"]]
    assert names == ["fast", "rate", "seconds"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (record("fast", 3.0) + '\n{"bench": "some", "name": 3}', "line 2: not a figure"),
        ('{"bench": broken', "line 1: not a figure"),
        ("for people\n", "no figure in it"),
    ],
)
def test_output_that_is_none_is_refused(module, tmp_path, capsys, text, said):
    (tmp_path / "output.txt").write_text(text)
    assert module("table").main([str(tmp_path / "output.txt")]) == 2
    error = capsys.readouterr().err
    assert said in error and "output.txt" in error and error.count("\n") == 1


def test_a_chart_needs_rates_of_the_peers(module, tmp_path, capsys):
    (tmp_path / "figures.json").write_text(json.dumps({"machine": {}, "figures": []}))
    assert module("chart").main([str(tmp_path / "figures.json"), str(tmp_path / "out.svg")]) == 2
    assert "no figure of bench_peers" in capsys.readouterr().err
    (tmp_path / "figures.json").write_text("[]")
    assert module("chart").main([str(tmp_path / "figures.json"), str(tmp_path / "out.svg")]) == 2
    assert "not a file of table.py" in capsys.readouterr().err


def test_memory_counts_what_is_private_and_no_page_cache(module, tmp_path):
    private_mib = module("bench_peers").private_mib
    np.ones(2**26, np.uint8).tofile(tmp_path / "file")
    before = private_mib(os.getpid())
    mapped = np.memmap(tmp_path / "file", np.uint8, "r")
    assert mapped.sum() == 2**26
    assert private_mib(os.getpid()) - before < 16
    held = np.ones(2**26, np.uint8)
    assert private_mib(os.getpid()) - before > 60
    assert held[-1] == 1


@pytest.mark.parametrize("key", PEERS)
def test_every_peer_gives_back_the_rows(module, tmp_path, key):
    peers, bench_peers = module("peers"), module("bench_peers")
    peer = peers.STORE if key == "store" else peers.PEERS[key]
    pytest.importorskip(peer.package)
    bench_peers.write_rows(tmp_path / "rows.npy", 150, 8)
    rows, folder = np.load(tmp_path / "rows.npy"), tmp_path / key
    folder.mkdir()
    peer.write(tmp_path / "rows.npy", folder)
    if peer.read is not None:
        picked = np.array([149, 0, 7, 7])
        np.testing.assert_array_equal(peer.read(folder)(picked), rows[picked])
    epochs = []
    loader = peer.loader(folder, 0)
    for _ in range(2):
        epochs.append(np.concatenate([np.asarray(bench_peers.batch_of(batch)) for batch in loader]))
        assert sorted(row.tobytes() for row in epochs[-1]) == sorted(row.tobytes() for row in rows)
        assert (epochs[-1] != rows).any(), "not shuffled"
    assert (epochs[0] != epochs[1]).any(), "the same order again"


@pytest.mark.slow
def test_from_measuring_to_the_chart(tmp_path):
    sizes = ("--rows", 64, "--grid", 8, "--rounds", 2, "--seconds", 0.01)
    output = run(BENCH / "bench_peers.py", *sizes, "--peer", "hdf5", "--dir", tmp_path)
    (tmp_path / "peers.txt").write_text(output)
    table = run(BENCH / "table.py", tmp_path / "peers.txt", "--json", tmp_path / "figures.json")
    assert "store over HDF5: random batches, 64 rows" in table
    assert "store over HDF5: shuffled epoch, 64 rows, 0 workers" in table
    figures = {one["name"]: one for one in json.loads((tmp_path / "figures.json").read_text())["figures"]}
    assert figures["HDF5: files, 64 rows"]["value"] == 1
    assert figures["HDF5: bytes a row, 64 rows"]["value"] > 64
    run(BENCH / "chart.py", tmp_path / "figures.json", tmp_path / "out.svg")
    texts = [element.text for element in ElementTree.parse(tmp_path / "out.svg").iter() if element.text]
    assert {"HDF5", "prior store", "random batches of 32", "64 rows"} <= set(texts)
    alternative = next(text for text in texts if text.startswith("random batches of 32, 64 rows"))
    rate = figures["HDF5: random batches, 64 rows"]["value"]
    assert f"HDF5 {rate:,.0f}" in alternative


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it():
    """Linux hands `ru_maxrss` on from one to the other, and a bench that has imported torch is the larger one."""
    child = (
        "import sys\n"
        f"sys.path.insert(0, {str(BENCH)!r})\n"
        "from figures import peak_mib\n"
        "before = peak_mib()\n"
        "held = bytearray(b'x') * (int(sys.argv[1]) << 20)\n"
        "print(before, peak_mib() - before)\n"
    )
    parent = (
        "import subprocess, sys\n"
        "held = bytearray(b'x') * (300 << 20)\n"
        "for size in ('0', '50'):\n"
        f"    subprocess.run([sys.executable, '-c', {child!r}, size], check=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    (small, none), (_, grown) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert small < 100 and none < 10 and 45 < grown < 60
