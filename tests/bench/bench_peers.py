"""The prior store beside what people would use instead, on the same rows: rates, bytes a row, files; and a chart.

    python tests/bench/bench_peers.py [--rows 2000 --rows 20000] [--grid 128] [--seconds 0.3] [--chart OUT.svg]

Each peer has the settings it recommends, said beside its name. A random batch is 32 rows drawn anew each time; an epoch
is every row once, shuffled as the peer shuffles. Rates are rows per second of processor time in windows that alternate
with windows of a memory-mapped array, the limit; ratios are medians over paired windows. A peer that is not
installed is left out with a line. Streams have no random batches.
"""

import argparse
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from bench_store import BATCH, Step, make_rows, make_store, paired, random_batches
from figures import Figure, print_figures

from shared.store.reader import PriorStore

Read = Callable[[np.ndarray], Any]
"""Row numbers to their rows u8 [B, G, G]."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to keep rows."""

    name: str
    """What it is, and its settings."""
    needs: str
    """Package; empty if it is always there."""
    write: Callable[[Path, np.ndarray], None]
    """Write the rows u8 [N, G, G] below a folder."""
    open: Callable[[Path], Read] | None = None
    """Open for random reads; None for a stream."""
    stream: Callable[[Path], Iterator[np.ndarray]] | None = None
    """One shuffled epoch, for peers with a shuffle of their own."""


def shuffled(read: Read, num_rows: int, seed: int) -> Iterator[np.ndarray]:
    """Batches of one epoch in an order drawn anew."""
    order = np.random.default_rng(seed).permutation(num_rows)
    for first in range(0, num_rows, BATCH):
        yield read(order[first : first + BATCH])


# ---- the peers ----------------------------------------------------------------------------------------------------


def write_memmap(folder: Path, rows: np.ndarray) -> None:
    np.save(folder / "rows.npy", rows)


def open_memmap(folder: Path) -> Read:
    array = np.load(folder / "rows.npy", mmap_mode="r")
    return lambda picked: array[picked]


def write_store(folder: Path, rows: np.ndarray) -> None:
    make_store(folder / "rows.zarr", rows)


def open_store(folder: Path) -> Read:
    store = PriorStore(folder / "rows.zarr")
    return lambda picked: store.batch("proposal", picked)


def write_hdf5(folder: Path, rows: np.ndarray) -> None:
    import h5py

    with h5py.File(folder / "rows.h5", "w") as file:
        file.create_dataset("proposal", data=rows, chunks=(1, *rows.shape[1:]))


def open_hdf5(folder: Path) -> Read:
    import h5py

    array = h5py.File(folder / "rows.h5", "r")["proposal"]

    def read(picked: np.ndarray) -> np.ndarray:
        unique, back = np.unique(picked, return_inverse=True)  # HDF5 takes rising indices alone
        return array[unique][back]

    return read


def write_npz(folder: Path, rows: np.ndarray) -> None:
    for number, row in enumerate(rows):
        np.savez_compressed(folder / f"{number:08d}.npz", proposal=row)


def open_npz(folder: Path) -> Read:
    def read(picked: np.ndarray) -> np.ndarray:
        return np.stack([np.load(folder / f"{number:08d}.npz")["proposal"] for number in picked])

    return read


def write_mds(folder: Path, rows: np.ndarray) -> None:
    from streaming import MDSWriter  # type: ignore[import-not-found]

    kind = "ndarray:uint8:" + ",".join(map(str, rows.shape[1:]))
    with MDSWriter(out=str(folder), columns={"proposal": kind}) as out:
        for row in rows:
            out.write({"proposal": row})


def open_mds(folder: Path) -> Read:
    from streaming import StreamingDataset

    data = StreamingDataset(local=str(folder), shuffle=False, batch_size=BATCH)
    return lambda picked: np.stack([data[int(number)]["proposal"] for number in picked])


def write_webdataset(folder: Path, rows: np.ndarray) -> None:
    import webdataset  # type: ignore[import-not-found]

    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=1024, verbose=0) as out:
        for number, row in enumerate(rows):
            out.write({"__key__": f"{number:08d}", "npy": row})


def stream_webdataset(folder: Path) -> Iterator[np.ndarray]:
    import webdataset

    files = sorted(map(str, folder.glob("*.tar")))
    data = webdataset.WebDataset(files, shardshuffle=len(files)).shuffle(1000).decode().to_tuple("npy")
    for (batch,) in data.batched(BATCH):
        yield np.asarray(batch)


PEERS = (
    Peer(name="store (shards of 512, crc32c)", needs="", write=write_store, open=open_store),
    Peer(name="HDF5 (chunk = row, plain)", needs="h5py", write=write_hdf5, open=open_hdf5),
    Peer(name=".npz a row (deflate)", needs="", write=write_npz, open=open_npz),
    Peer(name="MosaicML MDS (defaults)", needs="streaming", write=write_mds, open=open_mds),
    Peer(
        name="WebDataset (tar of 1024, buffer 1000)",
        needs="webdataset",
        write=write_webdataset,
        stream=stream_webdataset,
    ),
)
LIMIT = Peer(name="memory map (the limit)", needs="", write=write_memmap, open=open_memmap)


# ---- measuring ----------------------------------------------------------------------------------------------------


def epoch_step(peer: Peer, folder: Path, num_rows: int) -> Step:
    """A step that takes one batch of endless shuffled epochs."""

    def batches() -> Iterator[np.ndarray]:
        read = None if peer.open is None else peer.open(folder)
        for epoch in itertools.count():
            if peer.stream is not None:
                yield from peer.stream(folder)
            else:
                assert read is not None
                yield from shuffled(read, num_rows, epoch)

    endless = batches()
    return lambda: len(next(endless))


def bench(work: Path, rows: np.ndarray, seconds: float) -> list[Figure]:
    """All peers on the same rows."""
    num_rows, figures = len(rows), []
    limit = work / "limit"
    limit.mkdir(parents=True)
    LIMIT.write(limit, rows)
    assert LIMIT.open is not None
    for number, peer in enumerate((LIMIT, *PEERS)):
        if peer.needs and not importlib.util.find_spec(peer.needs):
            print(f"{peer.name}: left out, {peer.needs} is not installed", file=sys.stderr)
            continue
        folder = work / str(number)
        folder.mkdir()
        peer.write(folder, rows)
        name = f"{num_rows}: {peer.name}"
        steps: dict[str, tuple[Step, Step]] = {
            "epoch": (epoch_step(peer, folder, num_rows), epoch_step(LIMIT, limit, num_rows))
        }
        if peer.open is not None:
            read = peer.open(folder)
            np.testing.assert_array_equal(read(np.array([num_rows - 1, 0])), rows[[-1, 0]])
            reference = random_batches(LIMIT.open(limit), num_rows, BATCH)
            steps["random"] = (random_batches(read, num_rows, BATCH), reference)
        for what, (step, its) in steps.items():
            got, ratio = paired(step, its, seconds)
            figures.append(_figure(f"{name}, {what}", got, "rows/s", f"{ratio:.3g} x memory map"))
        files = [file for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / num_rows
        figures.append(_figure(f"{name}, size", size, "B/row", f"{len(files)} files"))
    return figures


def _figure(name: str, value: float, unit: str, note: str) -> Figure:
    return Figure(name=name, value=value, unit=unit, low=value, high=value, note=note)


def write_chart(path: Path, figures: list[Figure]) -> None:
    """Bars of the rates, on a logarithmic scale, as an SVG file that stands alone."""
    bars = [one for one in figures if one.unit == "rows/s"]
    top = max(one.value for one in bars)
    parts, row, left, width = [], 20, 360, 420
    for index, one in enumerate(bars):
        y = 30 + index * row
        length = max(2.0, width * (1 + np.log10(one.value / top) / 5))
        fill = "#2a6f97" if "store (" in one.name else "#a9b4bd"
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(one.name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="14" fill="{fill}"/>')
        parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 12}">{one.value:,.0f}</text>')
    height = 40 + row * len(bars)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" '
        'font-family="sans-serif" font-size="12"><title>Rows per second by kind of file</title>'
        f'<text x="{left}" y="18">rows per second of processor time, logarithmic</text>'
        + "".join(parts)
        + "</svg>\n",
        encoding="utf-8",
    )


def main() -> None:
    """Run everything, print the figures, write the chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, action="append", help="may be repeated; default 2000 and 20000")
    parser.add_argument("--grid", type=int, default=128, help="side of a row (default 128)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a timing window (default 0.3)")
    parser.add_argument("--chart", type=Path, default=None, help="SVG file to write")
    parser.add_argument("--dir", default=None, help="folder for the files (default: the system's)")
    args = parser.parse_args()
    figures: list[Figure] = []
    for num_rows in args.rows or [2000, 20_000]:
        with tempfile.TemporaryDirectory(dir=args.dir) as folder:
            figures += bench(Path(folder), make_rows(num_rows, args.grid), args.seconds)
    print_figures("peers", figures)
    if args.chart is not None:
        write_chart(args.chart, figures)


if __name__ == "__main__":
    main()
