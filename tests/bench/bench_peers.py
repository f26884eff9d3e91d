"""The prior store beside what people would use instead, on the same rows.

    python tests/bench/bench_peers.py [--rows 2000 --rows 20000 ...] [--grid 128] [--peer hdf5 ...] [--rounds 5]

Peers and their settings are those of `peers.py`; each runs in processes of its own, since some change global settings.
The store and one peer take turns: a window of random batches of 32 rows each, or a whole shuffled epoch each, drawn
anew. Rates are rows per second of wall time with the files in the page cache, worker processes started before; ratios
are taken within a turn, and the table has medians and ranges. Worker processes (1 and 2) are tried with 20,000 rows.
Memory is the most that was private to the process and its workers (their share of anonymous and shared memory, so no
page cache) during an epoch, over what it was before the files were opened. Streams have no random batches. Before
random batches and epochs are timed the same process has read the rows once (for random batches 12 s at most): the store
verifies a checksum where a process touches a row first. `first epoch of a process` is the rate with that.
"""

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from bench_store import BATCH, make_rows
from figures import Figure, figure, print_figures
from peers import PEERS, STORE, Peer

WORKERS = (0, 1, 2)
"""Worker processes of a loader."""
ROWS_WITH_WORKERS = 20_000
"""The size at which worker processes are tried; elsewhere the main process loads."""
DRAWN = 4096
"""Rows drawn; more are these again, for nothing here is compressed."""
TOUCHING = 12.0
"""Seconds at most that rows are read before random batches are timed."""
PATIENCE = 30.0
"""Seconds after which no further turn of an epoch is begun."""
SILENCE = 900.0
"""Seconds after which a contender counts as stuck."""
TARGETS = {
    ("memory map", "random"): ">= 0.6",
    ("memory map", "epoch"): ">= 0.75",
    ("LitData", "epoch"): ">= 5",
}
"""Aims for the ratio of the store to a peer, epochs without workers."""


# ---- a contender's process ----------------------------------------------------------------------------------------


def serve(requests: Connection, peer: Peer, folder: Path) -> None:
    """Answer requests until told None; each is the name of a function below and its arguments."""
    # What packages print is no figure; and workers are forked as in a program of its own, not spawned as this one.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    importlib.import_module(peer.package)
    contender = Contending(peer, folder)
    requests.send("ready")
    while (request := requests.recv()) is not None:
        name, *arguments = request
        requests.send(getattr(contender, name)(*arguments))
    os._exit(0)  # loaders stopped between two epochs need not end in order


class Contending:
    """One way to keep rows, in its process."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self.peer, self.folder = peer, folder
        self._generator = np.random.default_rng(5)
        self._read: Any = None
        self._loaders: dict[int, Any] = {}

    def write(self, rows: Path) -> float:
        """Seconds to write all rows of a .npy file."""
        start = time.perf_counter()
        self.peer.write(rows, self.folder)
        return time.perf_counter() - start

    def rows(self, picked: np.ndarray) -> np.ndarray:
        """Some rows, to compare."""
        assert self.peer.read is not None
        return np.array(self.peer.read(self.folder)(picked))

    def random(self, num_rows: int, seconds: float) -> float:
        """Rows/s of random batches over one window."""
        assert self.peer.read is not None
        self._read = self._read or self.peer.read(self.folder)
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds or not count:
            self._read(self._generator.integers(0, num_rows, BATCH))
            count += BATCH
        return count / elapsed

    def touch(self, num_rows: int) -> None:
        """Read every row once, in any order, unless that takes too long."""
        assert self.peer.read is not None
        self._read = self._read or self.peer.read(self.folder)
        start, order = time.perf_counter(), self._generator.permutation(num_rows)
        for first in range(0, num_rows, BATCH):
            if time.perf_counter() - start > TOUCHING:
                return
            self._read(order[first : first + BATCH])

    def epoch(self, workers: int) -> tuple[int, float]:
        """Rows of one shuffled epoch, and its seconds."""
        if workers not in self._loaders:
            self._loaders[workers] = self.peer.loader(self.folder, workers)
        start = time.perf_counter()
        count = sum(len(batch_of(batch)) for batch in self._loaders[workers])
        return count, time.perf_counter() - start

    def forget(self, workers: int) -> None:
        """End a loader's workers."""
        self._loaders.pop(workers)


def batch_of(batch: Any) -> Any:
    """The rows [B, G, G] in a loader's batch: itself, or in a dict or a tuple of one field."""
    if isinstance(batch, dict):
        return batch["proposal"]
    return batch[0] if isinstance(batch, list | tuple) else batch


# ---- seen from outside --------------------------------------------------------------------------------------------


class Contender:
    """The process of a contender, seen from outside."""

    def __init__(self, process: Any, requests: Connection) -> None:
        self._process, self._requests = process, requests
        self._await()

    def _await(self) -> Any:
        start = time.monotonic()
        while not self._requests.poll(1.0):
            if not self._process.is_alive():
                raise RuntimeError(
                    f"a contender ended with status {self._process.exitcode}; its error is above"
                )
            if time.monotonic() - start > SILENCE:
                raise RuntimeError(f"a contender has not answered for {SILENCE:.0f} s")
        return self._requests.recv()

    def ask(self, name: str, *arguments: Any) -> Any:
        """Have a method of `Contending` called; its result."""
        self._requests.send((name, *arguments))
        return self._await()

    def peak_mib(self, name: str, *arguments: Any) -> tuple[Any, float]:
        """The same, and the most private memory meanwhile."""
        self._requests.send((name, *arguments))
        peak = private_mib(self._process.pid)
        while not self._requests.poll(0.02) and self._process.is_alive():
            peak = max(peak, private_mib(self._process.pid))
        return self._await(), peak

    def private_mib(self) -> float:
        """Private memory now."""
        return private_mib(self._process.pid)

    def end(self) -> None:
        """End the process."""
        self._requests.send(None)
        self._process.join()


@contextmanager
def contender(peer: Peer, folder: Path) -> Iterator[Contender]:
    """A process that has the peer's package imported."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=serve, args=(its, peer, folder))
    process.start()
    its.close()
    try:
        one = Contender(process, ours)
        yield one
        one.end()
    finally:
        process.terminate()
        process.join()


def private_mib(process: int) -> float:
    """Memory of a process and its descendants without page cache, shared memory counted once, MiB."""
    kilobytes = 0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                kilobytes += int(line.split()[1])
        children = [
            int(child)
            for thread in Path(f"/proc/{process}/task").iterdir()
            for child in (thread / "children").read_text("ascii").split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # ended meanwhile
    return kilobytes / 1024 + sum(private_mib(child) for child in children)


# ---- measuring ----------------------------------------------------------------------------------------------------


def write_rows(path: Path, num_rows: int, grid: int) -> None:
    """The rows as a .npy file."""
    drawn = make_rows(min(num_rows, DRAWN), grid)
    flat = np.lib.format.open_memmap(path, "w+", np.uint8, (num_rows, grid, grid))
    for first in range(0, num_rows, DRAWN):
        flat[first : first + DRAWN] = drawn[: num_rows - first]
    flat.flush()


def written(one: Contender, peer: Peer, folder: Path, rows: Path) -> list[Figure]:
    """Have a contender write its files, and check and measure them."""
    array = np.load(rows, mmap_mode="r")
    seconds = one.ask("write", rows)
    os.sync()
    if peer.read is not None:
        picked = np.array([len(array) - 1, 0])
        np.testing.assert_array_equal(one.ask("rows", picked), array[picked])
    files = [file for file in folder.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / len(array)
    return [
        _figure(peer, "size", len(array), [size], "B/row", note=peer.settings),
        _figure(peer, "files", len(array), [len(files)], "files"),
        _figure(peer, "write", len(array), [len(array) / seconds], "rows/s"),
    ]


def random_turns(
    ours: Contender, its: Contender, num_rows: int, args: argparse.Namespace
) -> list[tuple[float, float]]:
    """Rates of random batches of the store and a peer, in turn."""
    for one in (ours, its):
        one.ask("touch", num_rows)
    return [
        (ours.ask("random", num_rows, args.seconds), its.ask("random", num_rows, args.seconds))
        for _ in range(args.rounds)
    ]


def epoch_turns(
    ours: Contender, its: Contender, num_rows: int, workers: int, args: argparse.Namespace
) -> list[tuple[float, float]]:
    """Rates of shuffled epochs of the store and a peer, in turn; workers are started before."""
    for one in (ours, its) if workers else ():
        one.ask("epoch", workers)
    rates: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(rates) < args.rounds and (not rates or time.perf_counter() - start < PATIENCE):
        pair = []
        for one in (ours, its):
            count, seconds = one.ask("epoch", workers)
            assert count == num_rows, f"an epoch of {count} rows instead of {num_rows}"
            pair.append(count / seconds)
        rates.append((pair[0], pair[1]))
    if workers:
        ours.ask("forget", workers)
    return rates


def first_epoch(one: Contender, peer: Peer, num_rows: int) -> list[Figure]:
    """Peak memory and rate of the first epoch of a process."""
    before = one.private_mib()
    (count, seconds), peak = one.peak_mib("epoch", 0)
    return [
        _figure(peer, "memory", num_rows, [peak - before], "MiB"),
        _figure(peer, "first", num_rows, [count / seconds], "rows/s"),
    ]


def bench(work: Path, num_rows: int, args: argparse.Namespace) -> Iterator[list[Figure]]:
    """The store beside each peer, on so many rows: the figures of each; a peer's files are removed after it."""
    rows, store = work / "rows.npy", work / "store"
    write_rows(rows, num_rows, args.grid)
    store.mkdir()
    mine: dict[tuple[str, int], list[float]] = {}
    with contender(STORE, store) as ours:
        yield [*written(ours, STORE, store, rows), *first_epoch(ours, STORE, num_rows)]
        for key in args.peer or PEERS:
            peer, folder = PEERS[key], work / key
            if not importlib.util.find_spec(peer.package):
                print(f"{peer.name}: left out, {peer.package} is not installed", file=sys.stderr)
                continue
            print(f"{num_rows} rows, {peer.name} ...", file=sys.stderr, flush=True)
            folder.mkdir()
            with contender(peer, folder) as its:
                figures = written(its, peer, folder, rows)
            for workers in args.workers or WORKERS if num_rows == ROWS_WITH_WORKERS else WORKERS[:1]:
                found = {}
                with contender(peer, folder) as its:
                    if workers == 0:
                        figures += first_epoch(its, peer, num_rows)
                    if workers == 0 and peer.read is not None:
                        found["random"] = random_turns(ours, its, num_rows, args)
                    found["epoch"] = epoch_turns(ours, its, num_rows, workers, args)
                for what, rates in found.items():
                    figures += _pair(peer, what, num_rows, rates, workers)
                    mine.setdefault((what, workers), []).extend(one for one, _ in rates)
            shutil.rmtree(folder)
            yield figures
    yield [
        _figure(STORE, what, num_rows, values, "rows/s", workers=workers)
        for (what, workers), values in mine.items()
    ]


NAMES = {
    "random": "random batches",
    "epoch": "shuffled epoch",
    "size": "bytes a row",
    "files": "files",
    "write": "written",
    "memory": "memory of an epoch",
    "first": "first epoch of a process",
}
"""What the table calls each measurement."""


def _label(what: str, num_rows: int, workers: int) -> str:
    return f"{NAMES[what]}, {num_rows:,} rows" + (f", {workers} workers" if what == "epoch" else "")


def _figure(
    peer: Peer,
    what: str,
    num_rows: int,
    values: list[float],
    unit: str,
    *,
    workers: int = 0,
    note: str = "",
) -> Figure:
    of: dict[str, str | int] = {"peer": peer.name, "what": what, "rows": num_rows, "workers": workers}
    return figure(f"{peer.name}: {_label(what, num_rows, workers)}", values, unit, note=note, of=of)


def _pair(
    peer: Peer, what: str, num_rows: int, rates: list[tuple[float, float]], workers: int
) -> list[Figure]:
    """Rate of the peer, and the store's ratio to it."""
    target = TARGETS.get((peer.name, what), "") if workers == 0 else ""
    ratios = [mine / its for mine, its in rates]
    return [
        _figure(peer, what, num_rows, [its for _, its in rates], "rows/s", workers=workers),
        figure(f"store over {peer.name}: {_label(what, num_rows, workers)}", ratios, "x", target),
    ]


def main() -> None:
    """Run everything and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, action="append", help="may be repeated; default 2000 and 20000")
    parser.add_argument("--grid", type=int, default=128, help="side of a row (default 128)")
    parser.add_argument("--peer", action="append", choices=PEERS, help="may be repeated; default all")
    parser.add_argument(
        "--workers", type=int, action="append", choices=WORKERS, help="default all of 0, 1, 2"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a window (default 0.3)")
    parser.add_argument("--dir", default=None, help="folder for the files (default: the system's)")
    args = parser.parse_args()
    for num_rows in args.rows or [2000, 20_000]:
        with tempfile.TemporaryDirectory(dir=args.dir) as folder:
            for figures in bench(Path(folder), num_rows, args):
                print_figures("peers", figures)


if __name__ == "__main__":
    main()
