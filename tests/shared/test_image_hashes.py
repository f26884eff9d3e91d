"""Hashes of images: what is read again, and what is not."""

import json
import os
import resource
import time

import pytest

from shared import image_hashes
from shared.errors import DataError
from shared.image_hashes import (
    MISSING_IMAGE,
    UNREADABLE_IMAGE,
    ImageHasher,
    content_hashes,
    identify_images,
)
from shared.image_pack import digest_of


def test_image_bytes_are_remembered_by_size_and_time(tmp_path):
    image, memory = tmp_path / "a.jpg", tmp_path / "hashes.json"
    image.write_bytes(b"one")
    first = identify_images([("a.jpg", image)], "content", memory)
    assert identify_images([("a.jpg", image)], "content", memory) == first
    stamp = image.stat().st_mtime_ns
    image.write_bytes(b"two")
    os.utime(image, ns=(stamp + 5_000, stamp + 5_000))
    assert identify_images([("a.jpg", image)], "content", memory) != first
    memory.write_text("{damaged")
    image.write_bytes(b"one")
    assert identify_images([("a.jpg", image)], "content", memory) == first


def test_an_image_that_was_changed_with_its_time_set_back_is_read_again(tmp_path):
    """As by `exiftool -P`, which turns a photo by one byte."""
    image, memory = tmp_path / "a.jpg", tmp_path / "hashes.json"
    image.write_bytes(b"one")
    first, stamp = identify_images([("a.jpg", image)], "content", memory), image.stat().st_mtime_ns
    time.sleep(0.05)  # times of change are as fine as the kernel's clock ticks
    image.write_bytes(b"two")
    os.utime(image, ns=(stamp, stamp))
    assert identify_images([("a.jpg", image)], "content", memory) != first


def test_remembered_hashes_save_the_reading(tmp_path, monkeypatch):
    image, memory = tmp_path / "a.jpg", tmp_path / "hashes.json"
    image.write_bytes(b"one")
    found = identify_images([("a.jpg", image)], "content", memory)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: pytest.fail("read again"))
    assert identify_images([("a.jpg", image)], "content", memory) == found


@pytest.mark.parametrize("damage", [".", None, 3, "0f" * 15, "0g" * 16, [], "unreadable"])
def test_a_remembered_hash_that_is_none_is_read_again(tmp_path, damage):
    image, memory = tmp_path / "a.jpg", tmp_path / "hashes.json"
    image.write_bytes(b"one")
    found = identify_images([("a.jpg", image)], "content", memory)
    sound = json.loads(memory.read_text())
    for entry in ([*sound[str(image)][:3], damage], [], damage):
        memory.write_text(json.dumps({str(image): entry}))
        assert identify_images([("a.jpg", image)], "content", memory) == found
        assert json.loads(memory.read_text()) == sound


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    """Nothing is simulated: this process may not write files of more than 20 bytes for a moment."""
    image, memory = tmp_path / "a.jpg", tmp_path / "hashes" / "a.json"
    image.write_bytes(b"one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(DataError, match="a.json: cannot write the hashes of images: File too large"):
            identify_images([("a.jpg", image)], "content", memory)
        assert identify_images([("a.jpg", image)], "content", memory, must_save=False) == {
            "a.jpg": digest_of(b"one").hex()
        }
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(memory.parent.iterdir()) == []
    identify_images([("a.jpg", image)], "content", memory)
    assert list(memory.parent.iterdir()) == [memory]


def test_only_images_with_bytes_have_a_hash():
    found = {"a": UNREADABLE_IMAGE, "b": MISSING_IMAGE, "c": "0f" * 16}
    assert content_hashes(found) == {"c": b"\x0f" * 16}


def test_a_packed_image_counts_as_its_file_would(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"bytes")
    for mode in ("content", "size"):
        (loose,) = identify_images([("a", file)], mode, tmp_path / f"{mode}.json").values()
        packed = len(b"bytes"), digest_of(b"bytes").hex()
        (same,) = identify_images([("a", packed)], mode, tmp_path / f"{mode}.json").values()
        assert same == loose and (mode == "content" or same == "5")


def test_what_was_read_is_kept_on_ctrl_c_and_by_the_way(tmp_path, monkeypatch):
    memory, read = tmp_path / "hashes" / "a.json", []
    images = [(f"{number}.jpg", tmp_path / f"{number}.jpg") for number in range(5)]
    for name, image in images:
        image.write_bytes(name.encode())
    read_hash = ImageHasher.read_hash

    def interrupted(hasher, path):
        read.append(len(json.loads(memory.read_text())) if memory.exists() else 0)
        if len(read) == 5:
            raise KeyboardInterrupt
        return read_hash(hasher, path)

    monkeypatch.setattr(image_hashes, "SAVE_EVERY", 3)
    monkeypatch.setattr(ImageHasher, "read_hash", interrupted)
    with pytest.raises(KeyboardInterrupt):
        identify_images(images, "content", memory)
    assert read == [0, 0, 0, 3, 3] and len(json.loads(memory.read_text())) == 4
    identify_images(images, "content", memory)
    assert len(read) == 6 and len(json.loads(memory.read_text())) == 5


def test_a_bar_goes_over_the_files_that_are_read_alone(tmp_path, capsys):
    memory = tmp_path / "hashes.json"
    images = [(name, tmp_path / name) for name in ("a.jpg", "b.jpg")]
    for name, image in images:
        image.write_bytes(name.encode())
    identify_images(images[:1], "content", memory, quiet=False)
    identify_images([*images, ("c.jpg", None), ("d.jpg", (3, "0f" * 16))], "content", memory, quiet=False)
    said = capsys.readouterr().err.splitlines()
    assert [line[: line.index("%")] for line in said] == ["hashing: 1/1 images (100"] * 2
    identify_images(images, "content", memory, quiet=False)
    assert capsys.readouterr().err == ""
