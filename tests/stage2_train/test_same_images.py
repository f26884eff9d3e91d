"""A store belongs to the bytes of its images."""

import dataclasses
import os
import shutil
import time
from pathlib import Path

import pytest

from shared.errors import DataError
from shared.image_pack_build import build_pack
from shared.refer import load_refer
from shared.refer_layout import IMAGE_FOLDERS
from stage2_train.config import RuntimeConfig, TrainConfig
from stage2_train.dry_run import describe
from stage2_train.inputs import open_inputs
from tests.stage2_train.miniature import OWN_BYTES, mini_config, write_priors


@pytest.fixture
def knowing(mini_root: Path, tmp_path: Path) -> TrainConfig:
    """A run on data of its own, whose store knows the bytes of its images."""
    for name in ("data", "tokenizer"):
        shutil.copytree(mini_root / name, tmp_path / name)
    dataset = load_refer(tmp_path / "data", "refshapes", "unc")
    write_priors(tmp_path / "stores" / "own.zarr", dataset, images=OWN_BYTES)
    return mini_config(tmp_path)


def _images_of(config: TrainConfig) -> list[Path]:
    dataset = load_refer(Path(config.data.root), "refshapes", "unc")
    return [dataset.image_path(name) for name in dict.fromkeys(s.file_name for s in dataset.samples("train"))]


def _replace(image: Path) -> None:
    """Another image of the same size, in pixels and in bytes, at the same time of modification."""
    old, stat = image.read_bytes(), image.stat()
    time.sleep(0.05)  # times of change are as fine as the kernel's clock ticks
    image.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    os.utime(image, ns=(stat.st_mtime_ns, stat.st_mtime_ns))


def test_a_photo_that_was_replaced_is_refused(knowing: TrainConfig) -> None:
    images = _images_of(knowing)
    open_inputs(knowing)
    old = images[2].read_bytes()
    _replace(images[2])
    with pytest.raises(
        DataError, match=rf"own.zarr: made for other bytes of image {images[2].name} than .* run `l2l"
    ):
        open_inputs(knowing)
    open_inputs(dataclasses.replace(knowing, runtime=RuntimeConfig(compare_images=False)))
    _replace(images[4])
    for look in (open_inputs, describe):  # and again, now that the new bytes are known
        with pytest.raises(DataError, match=f"image {images[2].name} and 1 more than .*data holds now"):
            look(knowing)
    _replace(images[4])
    images[2].write_bytes(old)
    open_inputs(knowing)


def test_images_are_read_again_only_where_their_files_have_changed(knowing: TrainConfig, monkeypatch) -> None:
    """Copied data, which all have other times, are read once."""
    images, read = _images_of(knowing), list[Path]()
    original = Path.read_bytes

    def reading(path: Path) -> bytes:
        read.extend([path] if path in images else [])
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    open_inputs(knowing, quiet=True)
    assert sorted(read) == sorted(images)
    open_inputs(knowing, quiet=True)
    assert len(read) == len(images)
    os.utime(images[1], ns=(1, 1))
    for _ in range(2):
        open_inputs(knowing, quiet=True)
    assert read[len(images) :] == [images[1]]


def test_a_packed_photo_that_was_replaced_is_refused(knowing: TrainConfig) -> None:
    """What counts is what a training reads: the pack, and the loose file only once it is packed anew."""
    images, root = _images_of(knowing), Path(knowing.data.root)
    names = [image.name for image in images]
    build_pack(root, names, IMAGE_FOLDERS, quiet=True)
    _replace(images[0])
    open_inputs(knowing)
    assert not (Path(knowing.cache_root) / "image-hashes").exists(), "nothing was read"
    build_pack(root, names, IMAGE_FOLDERS, quiet=True)
    with pytest.raises(DataError, match=f"image {names[0]} than"):
        open_inputs(knowing)


def test_images_of_which_a_store_knows_nothing_are_taken_as_they_are(knowing: TrainConfig) -> None:
    """One without hashes, and one that could not read an image."""
    dataset = load_refer(Path(knowing.data.root), "refshapes", "unc")
    unread = _images_of(knowing)[0]
    bare = write_priors(Path(knowing.cache_root) / "bare.zarr", dataset, fingerprint="bare")
    old = unread.read_bytes()
    unread.unlink()
    holey = write_priors(
        Path(knowing.cache_root) / "holey.zarr", dataset, fingerprint="holey", images=OWN_BYTES
    )
    unread.write_bytes(old + b" ")
    for store in (bare, holey):
        open_inputs(dataclasses.replace(knowing, store=str(store)))
    with pytest.raises(DataError, match=f"image {unread.name} than"):
        open_inputs(dataclasses.replace(knowing, store=str(Path(knowing.cache_root) / "own.zarr")))
