"""What people would use to keep rows for training, each at the settings its own documentation recommends.

Every peer keeps the same rows u8 [N, G, G]. `read` fetches any rows by number; `loader` gives batches of one epoch in
an order drawn anew each time, through the loader and the shuffle that come with the peer. No rows are compressed.

Versions measured: h5py 3.16, litdata 0.2.76, mosaicml-streaming 0.13.0, webdataset 1.0.2 (`requirements-peers.txt`).
"""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_store import BATCH, make_store
from torch.utils.data import DataLoader

from shared.store.reader import PriorStore

Read = Callable[[np.ndarray], Any]
"""Row numbers to their rows u8 [B, G, G]."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to keep rows."""

    name: str
    """What the tables call it."""
    settings: str
    """The settings it is run with."""
    package: str
    """Module it needs; `numpy` for what is always there."""
    write: Callable[[Path, Path], None]
    """Write the rows of a .npy file (first argument) below an empty folder (second)."""
    read: Callable[[Path], Read] | None
    """Open a folder for random reads; None for a stream, which has none."""
    loader: Callable[[Path, int], Iterable[Any]]
    """Shuffled batches of one epoch of a folder with so many worker processes; may be iterated again."""


class Rows:
    """A data set over any `read`, opened anew in every process: HDF5 must not be shared with a forked child."""

    def __init__(self, opener: Callable[[Path], Read], folder: Path) -> None:
        self.opener, self.folder = opener, folder
        self._opened: tuple[int, Read] | None = None
        self._num_rows = len(np.load(folder.parent / "rows.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return self._num_rows

    def __getitems__(self, rows: list[int]) -> np.ndarray:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self.opener(self.folder))
        return self._opened[1](np.asarray(rows))


def rows_loader(opener: Callable[[Path], Read], folder: Path, workers: int) -> Iterable[Any]:
    """A shuffled `DataLoader` that asks for the rows of a batch at once."""
    return DataLoader(
        Rows(opener, folder),  # type: ignore[arg-type]
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=torch.from_numpy,
    )


# ---- files of our own making --------------------------------------------------------------------------------------


def write_memmap(rows: Path, folder: Path) -> None:
    shutil.copyfile(rows, folder / "rows.npy")


def open_memmap(folder: Path) -> Read:
    array = np.load(folder / "rows.npy", mmap_mode="r")
    return lambda picked: array[picked]


def write_store(rows: Path, folder: Path) -> None:
    make_store(folder / "rows.zarr", np.load(rows, mmap_mode="r"))


def open_store(folder: Path) -> Read:
    store = PriorStore(folder / "rows.zarr")
    return lambda picked: store.batch("proposal", picked)


def write_npz(rows: Path, folder: Path) -> None:
    for number, row in enumerate(np.load(rows, mmap_mode="r")):
        np.savez(folder / f"{number:08d}.npz", proposal=row)


def open_npz(folder: Path) -> Read:
    def read(picked: np.ndarray) -> np.ndarray:
        return np.stack([np.load(folder / f"{number:08d}.npz")["proposal"] for number in picked])

    return read


# ---- HDF5 ---------------------------------------------------------------------------------------------------------


def write_hdf5(rows: Path, folder: Path) -> None:
    import h5py

    array = np.load(rows, mmap_mode="r")
    with h5py.File(folder / "rows.h5", "w") as file:
        file.create_dataset("proposal", data=array, chunks=(1, *array.shape[1:]))


def open_hdf5(folder: Path) -> Read:
    import h5py

    array = h5py.File(folder / "rows.h5", "r")["proposal"]

    # A list of indices instead, which would have to rise, takes h5py about five times as long.
    return lambda picked: np.stack([array[number] for number in picked])


# ---- LitData ------------------------------------------------------------------------------------------------------


def litdata_row(rows: Path, number: int) -> dict[str, np.ndarray]:
    """One sample, in a process of LitData's own."""
    return {"proposal": np.array(np.load(rows, mmap_mode="r")[number])}


def write_litdata(rows: Path, folder: Path) -> None:
    import litdata  # type: ignore[import-not-found]

    num_rows = len(np.load(rows, mmap_mode="r"))
    with open(os.devnull, "w", encoding="utf-8") as quiet, contextlib.redirect_stdout(quiet):
        litdata.optimize(
            fn=functools.partial(litdata_row, rows),
            inputs=list(range(num_rows)),
            output_dir=str(folder),
            chunk_bytes="64MB",
            num_workers=os.cpu_count(),
            keep_data_ordered=True,
            verbose=False,
        )


def open_litdata(folder: Path) -> Read:
    import litdata

    data = litdata.StreamingDataset(str(folder))
    return lambda picked: np.stack([data[int(number)]["proposal"] for number in picked])


def litdata_loader(folder: Path, workers: int) -> Iterable[Any]:
    import litdata

    data = litdata.StreamingDataset(str(folder), shuffle=True)
    return litdata.StreamingDataLoader(
        data, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
    )


# ---- MosaicML streaming -------------------------------------------------------------------------------------------


def write_mds(rows: Path, folder: Path) -> None:
    from streaming import MDSWriter  # type: ignore[import-not-found]

    array = np.load(rows, mmap_mode="r")
    kind = "ndarray:uint8:" + ",".join(map(str, array.shape[1:]))
    with MDSWriter(out=str(folder), columns={"proposal": kind}) as out:
        for row in array:
            out.write({"proposal": row})


@functools.cache
def mds_data(folder: Path) -> Any:
    """The data set of a folder; it refuses to be opened twice."""
    from streaming import StreamingDataset

    return StreamingDataset(local=str(folder), shuffle=True, shuffle_algo="py1e", batch_size=BATCH)


def open_mds(folder: Path) -> Read:
    data = mds_data(folder)
    return lambda picked: np.stack([data[int(number)]["proposal"] for number in picked])


def mds_loader(folder: Path, workers: int) -> Iterable[Any]:
    return DataLoader(mds_data(folder), batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)


# ---- WebDataset ---------------------------------------------------------------------------------------------------


def write_webdataset(rows: Path, folder: Path) -> None:
    import webdataset  # type: ignore[import-not-found]

    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=10_000, maxsize=1e9, verbose=0) as out:
        for number, row in enumerate(np.load(rows, mmap_mode="r")):
            out.write({"__key__": f"{number:08d}", "npy": row})


def webdataset_loader(folder: Path, workers: int) -> Iterable[Any]:
    import webdataset

    files = sorted(map(str, folder.glob("*.tar")))
    # A worker may be left without a shard: there is one of 10,000 rows where there are 2,000.
    data = webdataset.WebDataset(files, shardshuffle=len(files), empty_check=False)
    batches = data.shuffle(5000).decode().to_tuple("npy").batched(BATCH)
    return webdataset.WebLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


STORE = Peer(
    name="prior store",
    settings="Zarr v3, chunk = row, shards of 512 rows, crc32c, fsync; DataLoader",
    package="numpy",
    write=write_store,
    read=open_store,
    loader=functools.partial(rows_loader, open_store),
)
PEERS = {
    "memmap": Peer(
        name="memory map",
        settings="one .npy file, no checksum: the limit; DataLoader",
        package="numpy",
        write=write_memmap,
        read=open_memmap,
        loader=functools.partial(rows_loader, open_memmap),
    ),
    "hdf5": Peer(
        name="HDF5",
        settings="chunk = row, else h5py's defaults; row by row; DataLoader",
        package="h5py",
        write=write_hdf5,
        read=open_hdf5,
        loader=functools.partial(rows_loader, open_hdf5),
    ),
    "litdata": Peer(
        name="LitData",
        settings="optimize, chunks of 64 MB, all cores; StreamingDataset(shuffle=True), StreamingDataLoader",
        package="litdata",
        write=write_litdata,
        read=open_litdata,
        loader=litdata_loader,
    ),
    "mds": Peer(
        name="MosaicML MDS",
        settings="local shards of 64 MiB, shuffle py1e, predownload and block size by default; DataLoader",
        package="streaming",
        write=write_mds,
        read=open_mds,
        loader=mds_loader,
    ),
    "webdataset": Peer(
        name="WebDataset",
        settings="tar files of 10,000 rows or 1 GB, shuffle buffer of 5,000 rows (no full shuffle); WebLoader",
        package="webdataset",
        write=write_webdataset,
        read=None,
        loader=webdataset_loader,
    ),
    "npz": Peer(
        name="loose .npz",
        settings="np.savez a row; DataLoader",
        package="numpy",
        write=write_npz,
        read=open_npz,
        loader=functools.partial(rows_loader, open_npz),
    ),
}
"""Peers of the store by their names on the command line."""
