"""How fast the prior store is, as ratios to a memory-mapped array and to other readers of the same files.

    python tests/bench/bench_store.py [--rows 8192] [--grid 128] [--seconds 0.3] [--dir FOLDER]

Rates of a shared machine move by half; every contender is therefore timed in windows that alternate with windows
of the memory map, and the table shows the median ratio of paired windows (the rate is that of the median window).
Warm reads are rows per second of processor time, which other processes disturb least; cold reads and writes are of
wall time. `cold` drops the files from the page cache first (`posix_fadvise`). A reader that is not installed is left
out.
"""

import argparse
import functools
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, figure, print_figures

from shared.seeding import rng
from shared.store.reader import PriorStore
from shared.store.schema import SHARD_ROWS, FieldSpec, encode_text_rows
from shared.store.writer import create_store, write_shard

Step = Callable[[], int]
"""One unit of work; returns the rows it handled."""

ROUNDS = 5
BATCH = 32


def make_rows(num_rows: int, grid: int) -> np.ndarray:
    """Soft discs: u8 [N, G, G], smooth inside and flat outside, as proposals are."""
    generator = rng("bench store", num_rows, grid)
    axis = (np.arange(grid) + 0.5) / grid
    rows = np.empty((num_rows, grid, grid), np.uint8)
    for row in range(num_rows):
        (y, x), radius = generator.uniform(0.2, 0.8, 2), generator.uniform(0.1, 0.4)
        distance = np.hypot(axis[:, None] - y, axis[None] - x) / radius
        rows[row] = 255 / (1 + np.exp(np.clip(8 * (distance - 1), -20, 20)))
    return rows


def make_store(path: Path, rows: np.ndarray) -> None:
    """A store of one proposal field (and ids)."""
    num_rows, grid = rows.shape[:2]
    fields = (
        FieldSpec(name="sample_id", dtype="uint8", row_shape=(32,), compress=True),
        FieldSpec(name="proposal", dtype="uint8", row_shape=(grid, grid), chunk="row"),
    )
    ids = encode_text_rows([f"bench.unc.{row}" for row in range(num_rows)], 32, strict=True)
    create_store(
        path, num_rows=num_rows, fields=fields, attrs={"fingerprint": "bench"}, static={"sample_id": ids}
    )
    for shard, first in enumerate(range(0, num_rows, SHARD_ROWS)):
        write_shard(path, shard, {"proposal": rows[first : first + SHARD_ROWS]}, {})


def rate(step: Step, seconds: float) -> float:
    """Rows per second of processor time over one window."""
    count, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < seconds:
        count += step()
    return count / elapsed


def paired(step: Step, reference: Step, seconds: float) -> list[tuple[float, float]]:
    """Rates of `step` and `reference` in alternating windows."""
    step(), reference()
    return [(rate(step, seconds), rate(reference, seconds)) for _ in range(ROUNDS)]


def versus(what: str, name: str, rates: list[tuple[float, float]], target: str = "") -> list[Figure]:
    """The rate of one contender, and the store's ratio to the memory map of each pair."""
    figures = [figure(f"{name}: {what}", [mine for mine, _ in rates], "rows/s")]
    if name == "store":
        over = [mine / its for mine, its in rates]
        figures.append(figure(f"store over memory map: {what}", over, "x", target))
    return figures


def store_over(
    what: str, rates: dict[str, list[tuple[float, float]]], targets: dict[str, str]
) -> list[Figure]:
    """Ratios of the store to other readers of its files, both having been paired with the memory map."""
    mine = [one / reference for one, reference in rates["store"]]
    return [
        figure(
            f"store over {name}: {what}",
            [ours / (one / reference) for ours, (one, reference) in zip(mine, pairs, strict=True)],
            "x",
            targets.get(name, ""),
        )
        for name, pairs in rates.items()
        if name != "store"
    ]


def random_batches(read: Callable[[np.ndarray], Any], num_rows: int, size: int) -> Step:
    """A step that reads `size` random rows; each contender draws the same sequence."""
    generator = np.random.default_rng(5)

    def step() -> int:
        read(generator.integers(0, num_rows, size))
        return size

    return step


def peers(path: Path) -> dict[str, Callable[[np.ndarray], Any]]:
    """Other readers of the same store that are installed: name to a function of row numbers."""
    found: dict[str, Callable[[np.ndarray], Any]] = {}
    if importlib.util.find_spec("tensorstore"):
        import tensorstore  # type: ignore[import-not-found]

        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "proposal")}}
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 10**6}})
        opened = tensorstore.open(spec, context=context, read=True).result()
        found["tensorstore"] = lambda rows: opened[rows].read().result()
    if importlib.util.find_spec("zarr"):
        import zarr

        array = zarr.open_array(path / "proposal", mode="r")
        found["zarr-python"] = lambda rows: array.oindex[rows]
    return found


def drop(folder: Path) -> None:
    """Ask the kernel to forget the cached pages of every file under `folder`."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def cold_rate(folder: Path, opened: Callable[[], Callable[[np.ndarray], Any]], num_rows: int) -> float:
    """Rows per second of 40 random batches right after the files left the page cache."""
    drop(folder)
    step = random_batches(opened(), num_rows, BATCH)
    start = time.perf_counter()
    return sum(step() for _ in range(40)) / (time.perf_counter() - start)


def bench_reads(work: Path, rows: np.ndarray, seconds: float) -> list[Figure]:
    """Reading from the page cache."""
    store_path, flat_path = work / "bench.zarr", work / "memmap" / "rows.npy"
    memmap = np.load(flat_path, mmap_mode="r")
    store = PriorStore(store_path)
    num_rows = len(rows)
    np.testing.assert_array_equal(store.batch("proposal", [0, num_rows - 1]), rows[[0, -1]])
    figures = []
    for what, size, target in (("batch of 32, warm", BATCH, ">= 0.6"), ("single row, warm", 1, ">= 0.65")):
        reference = random_batches(_picker(memmap), num_rows, size)
        rates = {
            name: paired(random_batches(read, num_rows, size), reference, seconds)
            for name, read in {"store": _reader(store), **peers(store_path)}.items()
        }
        for name, pairs in rates.items():
            figures += versus(what, name, pairs, target if name == "store" else "")
        targets = {"tensorstore": ">= 6", "zarr-python": ">= 400"} if size == BATCH else {}
        figures += store_over(what, rates, targets)
    return figures


def bench_cold(work: Path, num_rows: int) -> list[Figure]:
    """Reading after the page cache was dropped; nothing may be mapped before."""
    store_path, flat_path = work / "bench.zarr", work / "memmap" / "rows.npy"
    openers: dict[str, Callable[[], Any]] = {"store": lambda: _reader(PriorStore(store_path))}
    for name in peers(store_path):
        openers[name] = functools.partial(lambda which: peers(store_path)[which], name)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in openers}
    for _ in range(3):
        for name, opened in openers.items():
            mine = cold_rate(store_path, opened, num_rows)
            its = cold_rate(flat_path.parent, lambda: _picker(np.load(flat_path, mmap_mode="r")), num_rows)
            rates[name].append((mine, its))
    figures = []
    for name, pairs in rates.items():
        figures += versus("batch of 32, cold", name, pairs)
    return figures + store_over("batch of 32, cold", rates, {"tensorstore": ">= 2"})


def _picker(array: np.ndarray) -> Callable[[np.ndarray], Any]:
    return lambda picked: array[picked]


def _reader(store: PriorStore) -> Callable[[np.ndarray], Any]:
    return lambda picked: store.batch("proposal", picked)


def bench_writes(work: Path, rows: np.ndarray) -> list[Figure]:
    """Writing whole stores, crash-safe, against a memory map flushed after each shard."""
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        make_store(work / "again.zarr", rows)
        mine = time.perf_counter() - start
        start = time.perf_counter()
        flat = np.lib.format.open_memmap(work / "again.npy", "w+", rows.dtype, rows.shape)
        for first in range(0, len(rows), SHARD_ROWS):
            flat[first : first + SHARD_ROWS] = rows[first : first + SHARD_ROWS]
            flat.flush()
        its = time.perf_counter() - start
        del flat
        shutil.rmtree(work / "again.zarr")
        (work / "again.npy").unlink()
        rates.append((len(rows) / mine, len(rows) / its))
    return versus("written, fsync and rename", "store", rates, ">= 1")


class _Rows:
    """A data set of rows for `DataLoader`, over any reader."""

    def __init__(self, read: Callable[[np.ndarray], Any], num_rows: int) -> None:
        self.read, self.num_rows = read, num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitems__(self, rows: list[int]) -> np.ndarray:
        return self.read(np.asarray(rows))


def bench_loader(work: Path, num_rows: int) -> list[Figure]:
    """A shuffled DataLoader in the main process."""
    if not importlib.util.find_spec("torch"):
        return []
    import torch

    def one_pass(read: Callable[[np.ndarray], Any]) -> Step:
        loader: Any = torch.utils.data.DataLoader(
            _Rows(read, num_rows),  # type: ignore[arg-type]
            batch_size=BATCH,
            shuffle=True,
            collate_fn=torch.from_numpy,
        )
        return lambda: sum(len(batch) for batch in loader)

    memmap = np.load(work / "memmap" / "rows.npy", mmap_mode="r")
    store = PriorStore(work / "bench.zarr")
    rates = paired(one_pass(_reader(store)), one_pass(_picker(memmap)), 0.1)
    return versus("DataLoader, 0 workers", "store", rates, ">= 0.75")


def main() -> None:
    """Run everything and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192, help="rows of the store (default 8192)")
    parser.add_argument("--grid", type=int, default=128, help="side of the proposal grid (default 128)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a timing window (default 0.3)")
    parser.add_argument("--dir", default=None, help="folder for the files (default: the system's)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        work = Path(folder)
        rows = make_rows(args.rows, args.grid)
        (work / "memmap").mkdir()
        np.save(work / "memmap" / "rows.npy", rows)
        make_store(work / "bench.zarr", rows)
        figures = bench_cold(work, args.rows) + bench_reads(work, rows, args.seconds)
        figures += bench_loader(work, args.rows) + bench_writes(work, rows)
    print_figures("store", figures)


if __name__ == "__main__":
    main()
