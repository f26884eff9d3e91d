"""How long the inspector keeps a person waiting, on a store of many pairs: opening it, a page, a search, a filter.

    python tests/bench/bench_inspector.py [--rows 120000] [--grid 64] [--repeats 5] [--dir FOLDER]

Pages, searches and filters are asked for over HTTP, in an order of their own each time. Each is also compared with the
same on a store of a hundredth of the rows, in turns: what a page costs must not grow with the store, what a search
costs may. Memory is the peak of a process that opens the store and answers each of them once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from figures import Figure, figure, peak_mib, print_figures
from PIL import Image

from shared.config import DataConfig
from shared.datasets import load_dataset
from shared.seeding import rng
from shared.store.schema import SHARD_ROWS, encode_text_rows, prior_fields
from shared.store.writer import create_store, write_shard
from shared.synth.expressions import VOCABULARY
from shared.types import STATUS_CODES, AnswerStatus
from stage1_priors.inspect.catalogue import PAGE_ROWS, Query
from stage1_priors.inspect.server import address, make_server
from stage1_priors.inspect.view import open_view

NUM_IMAGES = 64
STATUSES = (AnswerStatus.OK, AnswerStatus.CLIPPED, AnswerStatus.NO_BOX, AnswerStatus.TRUNCATED)
SHARES = (0.9, 0.06, 0.03, 0.01)


def make_data(folder: Path, num_rows: int) -> DataConfig:
    """A JSONL file of many pairs over a few images."""
    generator = rng("bench inspector", num_rows)
    folder.mkdir(parents=True)
    for number in range(NUM_IMAGES):
        pixels = generator.integers(0, 256, (480, 640, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
    words = sorted(VOCABULARY)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for row, picked in enumerate(generator.integers(0, len(words), (num_rows, 6))):
            expression = " ".join(words[index] for index in picked)
            file.write(json.dumps({"image": f"{row % NUM_IMAGES}.jpg", "expression": expression}) + "\n")
    return DataConfig(root=str(folder / "pairs.jsonl"), dataset="pairs")


def make_store(path: Path, data: DataConfig, grid: int) -> None:
    """A complete store of that data: answers of four kinds, confidences, soft discs."""
    dataset = load_dataset(data)
    samples, fields = dataset.samples("train"), prior_fields(grid)
    static = {
        "sample_id": encode_text_rows([one.sample_id for one in samples], 96, strict=True),
        "expression": encode_text_rows([one.expression for one in samples], 256),
        "image_id": np.array([one.image_id for one in samples], np.int64),
        "split": np.zeros(len(samples), np.uint8),
        "image_hw": np.array([(one.height, one.width) for one in samples], np.int32),
    }
    made_for = {
        "root": data.root,
        "dataset": data.dataset,
        "split_by": data.split_by,
        "fingerprint": dataset.fingerprint(),
    }
    attrs = {
        "fingerprint": "bench",
        "fingerprint_fields": {},
        "data": made_for,
        "splits": ["train"],
        "grid": grid,
    }
    create_store(path, num_rows=len(samples), fields=fields, attrs=attrs, static=static)
    generator = rng("bench inspector", "answers", len(samples))
    axis = (np.arange(grid) + 0.5) / grid - 0.5
    disc_GG = (255 / (1 + np.exp(40 * (np.hypot(axis[:, None], axis[None]) - 0.25)))).astype(np.uint8)
    for shard, start in enumerate(range(0, len(samples), SHARD_ROWS)):
        num = min(SHARD_ROWS, len(samples) - start)
        written = [spec for spec in fields if spec.name not in static]
        arrays = {spec.name: np.zeros((num, *spec.row_shape), spec.numpy_dtype) for spec in written}
        codes = [STATUS_CODES[status] for status in STATUSES]
        arrays["status"][:] = generator.choice(codes, num, p=SHARES)
        arrays["confidence"][:] = -generator.exponential(0.3, num)
        arrays["box_xyxy_norm"][:] = (0.25, 0.25, 0.75, 0.75)
        arrays["proposal"][:] = disc_GG
        arrays["raw_text"][:] = encode_text_rows(['[{"bbox_2d": [1, 2, 3, 4]}]'] * num, 512)
        write_shard(path, shard, arrays, {})


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The address of an inspector of a store."""
    with make_server(open_view(path), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield address(server)
        finally:
            server.shutdown()


def seconds_of(url: str) -> float:
    """How long an answer takes to arrive whole."""
    start = time.perf_counter()
    with urllib.request.urlopen(url) as answer:
        answer.read()
    return time.perf_counter() - start


def questions(num_rows: int, turn: int) -> dict[str, str]:
    """Addresses of what a person looks at, other ones every turn."""
    generator = rng("bench inspector", "questions", turn)
    words = sorted(VOCABULARY)
    two = f"{generator.choice(words)} {generator.choice(words)}"
    without = int(num_rows * sum(SHARES[2:]) * 0.9)
    return {
        "page": Query().address(page=int(generator.integers(1, num_rows // PAGE_ROWS, endpoint=True))),
        "search for two words": Query(text=two).address(),
        "filter by status": Query(status="without a prior").address(
            page=int(generator.integers(1, without // PAGE_ROWS, endpoint=True))
        ),
        "least confident first": Query(order="least confident", high=-0.1 * (turn + 1)).address(),
        "photo": f"/image/{int(generator.integers(num_rows))}.jpg",
        "soft mask": f"/prior/{int(generator.integers(num_rows))}.png",
    }


def bench(large: Path, small: Path, num_rows: tuple[int, int], repeats: int) -> list[Figure]:
    """Opening and every question, and the same in comparison with the small store."""
    opening = [
        (_seconds(lambda: open_view(large)), _seconds(lambda: open_view(small))) for _ in range(repeats)
    ]
    figures = [figure("open", [mine for mine, _ in opening], "s")]
    waits: dict[str, list[tuple[float, float]]] = {}
    with served(large) as here, served(small) as there:
        for turn in range(repeats + 1):
            asked = zip(
                questions(num_rows[0], turn).items(), questions(num_rows[1], turn).values(), strict=True
            )
            for (name, mine), its in asked:
                waits.setdefault(name, []).append((seconds_of(here + mine), seconds_of(there + its)))
    for name, found in waits.items():
        pairs = found[1:]  # the first one warms up
        figures.append(figure(name, [mine for mine, _ in pairs], "s", "<= 1"))
        target = "<= 2" if name in ("page", "photo", "soft mask") else ""
        note = f"over {num_rows[1]} rows"
        figures.append(figure(f"{name}, ratio", [mine / its for mine, its in pairs], "x", target, note))
    return figures


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def peak_of_serving(path: Path, num_rows: int) -> float:
    """Peak memory of this process once it has opened a store and answered every question, MiB."""
    with served(path) as here:
        for url in questions(num_rows, 0).values():
            seconds_of(here + url)
    return peak_mib()


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=120_000, help="rows of the store (default 120000)")
    parser.add_argument("--grid", type=int, default=64, help="side of the proposal grid (default 64)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default 5)")
    parser.add_argument("--dir", default=None, help="folder for the files (default: the system's)")
    parser.add_argument("--peak", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak_of_serving(args.peak, args.rows))
        return
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        work, num_rows = Path(folder), (args.rows, max(args.rows // 100, 1000))
        for name, num in zip(("large", "small"), num_rows, strict=True):
            make_store(work / f"{name}.zarr", make_data(work / name, num), args.grid)
        figures = bench(work / "large.zarr", work / "small.zarr", num_rows, args.repeats)
        peaks = []
        for _ in range(min(args.repeats, 3)):
            told = [sys.executable, __file__, "--rows", str(args.rows), "--peak", str(work / "large.zarr")]
            peaks.append(float(subprocess.run(told, check=True, stdout=subprocess.PIPE, text=True).stdout))
    figures.append(figure("peak memory", peaks, "MiB", "<= 1024"))
    print(f"{args.rows} rows at grid {args.grid}")
    print_figures("inspector", figures)


if __name__ == "__main__":
    main()
