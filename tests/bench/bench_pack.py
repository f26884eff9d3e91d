"""Images out of one pack against loose files, and large JPEGs decoded at a reduced size against whole ones.

    python tests/bench/bench_pack.py [--images 2000] [--side 300] [--repeats 5] [--dir FOLDER]

Reads go in a random order, another one each time, in windows that alternate between pack and loose files. Cold: the
files were dropped from the page cache and are opened anew. `bytes` reads the file alone, `images` decodes it too.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from figures import Figure, figure, print_figures
from PIL import Image

from shared.image_pack import PACK_NAME, ImageStore
from shared.image_pack_build import build_pack
from shared.images import read_image
from shared.seeding import rng

FOLDERS = ("images",)


def write_images(root: Path, num: int, side: int) -> list[str]:
    """Drawn JPEGs with smooth colours and noise, about as many bytes a pixel as photos have."""
    (root / "images").mkdir(parents=True)
    names = []
    for index in range(num):
        generator = rng("bench pack", index)
        small = Image.fromarray(generator.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        value = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        noisy = (value + generator.integers(-12, 13, value.shape)).clip(0, 255).astype(np.uint8)
        names.append(f"{index:06d}.jpg")
        Image.fromarray(noisy).save(root / "images" / names[-1], quality=90)
    return names


def drop(files: list[Path]) -> None:
    """Ask the kernel to forget the cached pages of some files."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_per_second(store: ImageStore, names: list[str]) -> float:
    """Images/s of reading files; a store with a pack also compares each with its hash."""
    start = time.perf_counter()
    for name in names:
        _ = store.pack.read(name) if store.pack else store.path(name).read_bytes()
    return len(names) / (time.perf_counter() - start)


def images_per_second(store: ImageStore, names: list[str]) -> float:
    """Images/s of reading and decoding."""
    start = time.perf_counter()
    for name in names:
        store.read(name)
    return len(names) / (time.perf_counter() - start)


def bench_pack(packed: Path, loose: Path, names: list[str], repeats: int) -> list[Figure]:
    """Ratios of the pack to loose files of the same bytes."""
    figures = []
    for what, rate in (("bytes", bytes_per_second), ("images", images_per_second)):
        for state in ("cold", "warm"):
            rates: list[tuple[float, float]] = []
            for repeat in range(repeats):
                order = [names[row] for row in rng("order", what, state, repeat).permutation(len(names))]
                pair = []
                for root in (packed, loose):
                    files = [packed / PACK_NAME] if root == packed else sorted((loose / "images").iterdir())
                    if state == "cold":
                        drop(files)
                    store = ImageStore(root, FOLDERS)
                    if state == "warm":
                        bytes_per_second(store, names)
                    pair.append(rate(store, order))
                rates.append((pair[0], pair[1]))
            mine, its = zip(*rates, strict=True)
            ratios = [one / other for one, other in rates]
            figures.append(figure(f"pack, {what}, {state}", mine, "/s"))
            figures.append(figure(f"loose files, {what}, {state}", its, "/s"))
            figures.append(figure(f"  pack over loose, {what}, {state}", ratios, "x"))
    return figures


def bench_reduced(root: Path, repeats: int) -> list[Figure]:
    """A photo of 12 megapixels shrunk to 480 x 480, decoded whole and at a reduced size."""
    name = write_images(root, 1, 3464)[0]
    path, size_hw = root / "images" / name, (480, 480)

    def seconds(at_least_hw: tuple[int, int] | None) -> float:
        start = time.perf_counter()
        read_image(path, at_least_hw=at_least_hw).resize(size_hw, Image.Resampling.BILINEAR)
        return time.perf_counter() - start

    pairs = [(seconds(None), seconds(size_hw)) for _ in range(repeats)]
    note = "12 megapixels to 480 x 480"
    return [
        figure("whole JPEG decoded and shrunk", [whole for whole, _ in pairs], "s", note=note),
        figure("  decoded at a reduced size, speed", [whole / part for whole, part in pairs], "x", note=note),
    ]


def main() -> None:
    """Run everything and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="images (default 2000)")
    parser.add_argument("--side", type=int, default=300, help="side of an image, pixels (default 300)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each contender (default 5)")
    parser.add_argument("--dir", default=None, help="folder for the files (default: the system's)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        packed, loose = Path(folder) / "packed", Path(folder) / "loose"
        names = write_images(packed, args.images, args.side)
        build_pack(packed, names, FOLDERS, quiet=True)
        loose.mkdir()
        (packed / "images").rename(loose / "images")
        figures = bench_pack(packed, loose, names, args.repeats)
        figures += bench_reduced(Path(folder) / "large", args.repeats)
    print_figures("pack", figures)


if __name__ == "__main__":
    main()
