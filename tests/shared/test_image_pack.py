"""The image pack: the bytes of the loose files, whatever interrupts its building, in every process."""

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from shared import image_pack_build
from shared.errors import DataError
from shared.image_hashes import identify_images
from shared.image_pack import ImagePack, ImageStore
from shared.image_pack_build import build_pack
from shared.images import image_size_hw
from shared.jsonl import load_jsonl
from shared.locks import locked
from shared.refer import load_refer
from shared.refer_check import check_refer
from shared.refer_layout import IMAGE_FOLDERS
from shared.synth.example import write_example
from stage1_priors.identity import images_fingerprint
from tests.shared.refer_fixture import write_refer_fixture


@pytest.fixture
def written(tmp_path):
    return write_refer_fixture(tmp_path)


def names_of(written):
    return [image["file_name"] for image in written.instances["images"]]


def loose(written):
    return {path.name: path.read_bytes() for path in (written.root / "images").iterdir()}


def test_a_packed_set_reads_like_a_loose_one(written, monkeypatch):
    monkeypatch.setattr(image_pack_build, "_COPY_BYTES", 1000)  # in several blocks, as one of many images is
    plain, files = load_refer(*written.args), loose(written)
    pixels = {s.sample_id: np.asarray(plain.image(s)) for s in plain.samples()}
    answer = build_pack(written.root, names_of(written), IMAGE_FOLDERS, quiet=True)
    assert (answer["images"], answer["added"]) == (6, 6)
    shutil.rmtree(written.root / "images")
    packed = load_refer(*written.args)
    for sample in packed.samples():
        np.testing.assert_array_equal(np.asarray(packed.image(sample)), pixels[sample.sample_id])
    assert packed.fingerprint() == plain.fingerprint() and check_refer(*written.args).ok
    pack = ImagePack(written.root / "images.h5")
    assert pack.names == names_of(written) and {name: pack.read(name) for name in pack.names} == files


@pytest.mark.parametrize("mode", ["content", "size"])
def test_priors_made_from_loose_files_fit_the_pack(written, tmp_path, mode):
    def fingerprint():
        dataset = load_refer(*written.args)
        names = names_of(written)
        named = [(name, dataset.image_identity(name)) for name in names]
        return images_fingerprint(identify_images(named, mode, tmp_path / "memory.json"))

    before = fingerprint()
    build_pack(written.root, names_of(written), IMAGE_FOLDERS, quiet=True)
    assert fingerprint() == before


def test_own_data_can_be_packed(tmp_path):
    path = write_example(tmp_path / "mine")["path"]
    plain = load_jsonl(path)
    build_pack(plain.root, [s.file_name for s in plain.samples()], ("",), quiet=True)
    shutil.rmtree(plain.root / "images")
    packed = load_jsonl(path)
    assert packed.samples() == plain.samples() and packed.fingerprint() == plain.fingerprint()
    assert packed.image(packed.samples()[0]).size == (128, 128)


def test_the_sizes_of_packed_images_are_known_without_reading_them(tmp_path, monkeypatch):
    """Own data are loaded by every command, and the sizes of their images are part of what is loaded."""
    path = write_example(tmp_path / "mine")["path"]
    plain = load_jsonl(path)
    names = [s.file_name for s in plain.samples()]
    build_pack(plain.root, names, ("",), quiet=True)
    read = ImagePack.read
    monkeypatch.setattr(ImagePack, "read", lambda *_: pytest.fail("an image was read"))
    assert load_jsonl(path).samples() == plain.samples()
    asked = []
    monkeypatch.setattr(ImagePack, "read", lambda pack, name: asked.append(name) or read(pack, name))
    load_jsonl(path).image(plain.samples()[0], (16, 16))
    assert asked == names[:1]


def test_files_replaced_beside_a_pack_are_named_without_being_opened(tmp_path, monkeypatch):
    for folder in ("images", "more"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{number}.png")
    names, folders = [f"{number}.png" for number in range(4)], ("nowhere", "images", "more")
    assert ImageStore(tmp_path, folders).replaced(names) == []
    build_pack(tmp_path, names[:3], folders, quiet=True)
    store = ImageStore(tmp_path, folders)
    assert store.replaced(names) == []
    (tmp_path / "images" / "1.png").write_bytes(b"another")
    (tmp_path / "images" / "2.png").rename(tmp_path / "more" / "2.png")
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("a file was opened"))
    assert store.replaced(names) == ["1.png"]
    monkeypatch.undo()
    assert store.replaced(["1.png", "a\0b.png"]) == ["1.png"]
    build_pack(tmp_path, names, folders, quiet=True)
    assert ImageStore(tmp_path, folders).replaced(names) == []
    for number in range(4):
        (tmp_path / "images" / f"{number}.png").unlink(missing_ok=True)
    assert ImageStore(tmp_path, folders).replaced(names) == []


def test_sizes_are_of_the_upright_image_and_files_that_are_no_image_are_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "text.jpg").write_text("no image")
    build_pack(tmp_path, ["turned.jpg", "text.jpg"], ("",), quiet=True)
    store = ImageStore(tmp_path, ("",))
    assert store.size_hw("turned.jpg") == store.pack.size_hw("turned.jpg") == (6, 4)
    with pytest.raises(DataError, match="images.h5: text.jpg: image cannot be read"):
        store.size_hw("text.jpg")


def test_a_pack_of_another_format_is_refused_and_built_again(written):
    names = names_of(written)
    build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    path = written.root / "images.h5"
    with h5py.File(path, "r+") as file:
        del file.attrs["format"], file["size_hw"]
    with pytest.raises(DataError, match="images.h5: .*: it is of format 1, and 2 is read; build it again"):
        ImagePack(path).read(names[0])
    assert build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)["added"] == len(names)
    assert ImagePack(path).size_hw(names[0]) == (
        written.instances["images"][0]["height"],
        written.instances["images"][0]["width"],
    )


def test_images_are_added_and_a_finished_pack_is_left_alone(written):
    names = names_of(written)
    build_pack(written.root, names[:2], IMAGE_FOLDERS, quiet=True)
    path = written.root / "images.h5"
    assert (written.root / "images" / names[0]).unlink() is None
    answer = build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    assert (answer["images"], answer["added"]) == (6, 4) and names[0] in ImagePack(path)
    stamp = path.stat().st_mtime_ns
    assert build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)["added"] == 0
    assert path.stat().st_mtime_ns == stamp
    assert [path.name for path in written.root.glob(".images.h5*")] == [".images.h5.lock"]


def test_other_images_are_added_behind_those_that_are_there(written):
    """As when splits are packed one after the other."""
    names = names_of(written)
    build_pack(written.root, names[4:], IMAGE_FOLDERS, quiet=True)
    answer = build_pack(written.root, names[:3], IMAGE_FOLDERS, quiet=True)
    assert (answer["images"], answer["added"]) == (5, 3)
    assert ImagePack(written.root / "images.h5").names == [*names[4:], *names[:3]]


def test_large_photos_are_decoded_no_larger_than_they_are_needed(tmp_path):
    for name in ("packed.jpg", "loose.jpg"):
        Image.new("RGB", (256, 256)).save(tmp_path / name)
    build_pack(tmp_path, ["packed.jpg"], ("",), quiet=True)
    store = ImageStore(tmp_path, ("",))
    for name in ("packed.jpg", "loose.jpg"):
        assert (store.read(name).size, store.read(name, (50, 60)).size) == ((256, 256), (128, 128)), name


@pytest.mark.parametrize("torn", [0, 7])
@pytest.mark.parametrize("killed_after", [1, 4, 6])
def test_a_killed_build_goes_on(written, monkeypatch, killed_after, torn):
    names, files = names_of(written), loose(written)
    read = []

    def dying(data):
        read.append(data)
        if len(read) > killed_after:
            raise KeyboardInterrupt
        return digest_of(data)

    digest_of = image_pack_build.digest_of
    monkeypatch.setattr(image_pack_build, "digest_of", dying)
    killed = pytest.raises(KeyboardInterrupt) if killed_after < 6 else None
    if killed is None:
        monkeypatch.setattr("h5py.File", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        killed = pytest.raises(KeyboardInterrupt)
    with killed:
        build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    monkeypatch.undo()
    flat = written.root / ".images.h5.flat"
    flat.write_bytes(flat.read_bytes()[: flat.stat().st_size - torn])  # what a power cut may take
    seen = []
    monkeypatch.setattr(image_pack_build, "digest_of", lambda data: seen.append(data) or digest_of(data))
    build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    assert 6 - killed_after <= len(seen) <= 6 - killed_after + 1
    pack = ImagePack(written.root / "images.h5")
    assert {name: pack.read(name) for name in pack.names} == files


@pytest.mark.parametrize("left", ["of other images", "without its index", "a torn line", "a short row"])
def test_what_a_killed_build_left_is_not_taken_for_other_images(written, monkeypatch, left):
    names, files = names_of(written), loose(written)
    monkeypatch.setattr("h5py.File", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    monkeypatch.undo()
    index = written.root / ".images.h5.index"
    if left == "without its index":
        index.unlink()
    elif left == "a torn line":
        index.write_bytes(index.read_bytes()[:-9] + b"\n")
    elif left == "a short row":
        index.write_text(json.dumps([names[0], len(files[names[0]])]) + "\n")
    wanted = [names[0], *reversed(names[1:])] if left == "of other images" else names
    build_pack(written.root, wanted, IMAGE_FOLDERS, quiet=True)
    pack = ImagePack(written.root / "images.h5")
    assert pack.names == wanted and {name: pack.read(name) for name in pack.names} == files


def test_an_image_that_was_replaced_since_a_kill_is_packed_as_it_is_now(written, monkeypatch):
    names = names_of(written)
    monkeypatch.setattr("h5py.File", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    monkeypatch.undo()
    images = written.root / "images"
    shutil.copyfile(images / names[1], images / names[0])
    build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    pack, files = ImagePack(written.root / "images.h5"), loose(written)
    assert {name: pack.read(name) for name in pack.names} == files and files[names[0]] == files[names[1]]


def test_two_at_once_would_write_the_same_pack(written):
    with (
        locked(written.root / ".images.h5.lock"),
        pytest.raises(DataError, match="images.h5.lock: held by another process, which writes here"),
    ):
        build_pack(written.root, names_of(written), IMAGE_FOLDERS, quiet=True)
    assert not (written.root / "images.h5").exists()


def _read_in_child(pack, name, queue):
    queue.put(pack.read(name))


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_every_process_opens_its_own(written, start):
    names = names_of(written)
    build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    pack = ImagePack(written.root / "images.h5")
    expected = pack.read(names[3])
    assert pickle.loads(pickle.dumps(pack)).read(names[3]) == expected
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(pack, names[3], queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()
    queue.close()


def test_a_pack_is_opened_once(written, monkeypatch):
    """Every image of a training is read from it."""
    build_pack(written.root, names_of(written), IMAGE_FOLDERS, quiet=True)
    opened, file_of = [], h5py.File
    monkeypatch.setattr(h5py, "File", lambda *arguments: opened.append(arguments) or file_of(*arguments))
    pack = ImagePack(written.root / "images.h5")
    for name in names_of(written):
        assert pack.read(name) and pack.size_and_digest(name)[0] > 0
    assert len(opened) == 1


@pytest.mark.parametrize("part", ["offset", "digest", "size_hw", "name", "data"])
def test_parts_that_do_not_fit_together_are_refused(written, part):
    """As of a file that something else has written to: names and bytes would be matched wrongly."""
    build_pack(written.root, names_of(written), IMAGE_FOLDERS, quiet=True)
    path = written.root / "images.h5"
    with h5py.File(path, "r+") as file:
        kept = json.loads(file["name"][:].tobytes())[:-1] if part == "name" else file[part][:-1]
        del file[part]
        file[part] = np.frombuffer(json.dumps(kept).encode(), np.uint8) if part == "name" else kept
    refused = pytest.raises(DataError, match="images.h5: not a whole image pack: .*; build it again")
    with refused:
        ImagePack(path).read(names_of(written)[0])
    with h5py.File(path, "r+") as file:
        del file[part]
    with refused:
        ImagePack(path).read(names_of(written)[0])


def test_images_that_a_pack_lacks_are_read_from_their_loose_files(written):
    names, files = names_of(written), loose(written)
    build_pack(written.root, names[:2], IMAGE_FOLDERS, quiet=True)
    packed, plain = ImageStore(written.root, IMAGE_FOLDERS), written.root / "images" / names[2]
    assert packed.place(names[1]).endswith(f"images.h5: {names[1]}") and packed.place(names[2]) == str(plain)
    assert packed.data(names[2]) == files[names[2]]
    assert packed.read(names[2]).size[::-1] == packed.size_hw(names[2]) == image_size_hw(plain)


def test_a_file_without_a_byte_is_packed_like_any_other(tmp_path):
    (tmp_path / "empty.jpg").touch()
    build_pack(tmp_path, ["empty.jpg"], ("",), quiet=True)
    assert ImageStore(tmp_path, ("",)).data("empty.jpg") == b""


def test_damage_is_named(written):
    names = names_of(written)
    build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    path = written.root / "images.h5"
    whole, piece = path.read_bytes(), loose(written)[names[2]]
    at = whole.index(piece) + len(piece) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(DataError, match=rf"images.h5: image {names[2]} is damaged"):
        ImagePack(path).read(names[2])
    report = check_refer(*written.args)
    assert [problem.kind for problem in report.problems] == ["unreadable image file"]
    for broken in (whole[: len(whole) // 2], b"", b"no pack"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="images.h5: not a whole image pack"):
            ImagePack(path).read(names[2])


@pytest.mark.parametrize("more", [0, 2])
def test_damage_is_mended_from_the_loose_files(written, more):
    """And images that are whole in the pack need no loose file."""
    names, images = names_of(written), loose(written)
    build_pack(written.root, names[: len(names) - more], IMAGE_FOLDERS, quiet=True)
    path = written.root / "images.h5"
    whole, piece = path.read_bytes(), images[names[2]]
    at = whole.index(piece) + len(piece) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    (written.root / "images" / names[0]).unlink()
    answer = build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    assert (answer["images"], answer["added"], answer["mended"]) == (len(names), more, 1)
    assert {name: ImagePack(path).read(name) for name in names} == {name: images[name] for name in names}
    assert build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)["mended"] == 0
    (written.root / "images" / names[0]).write_bytes(images[names[0]])
    path.write_bytes(whole[: len(whole) // 2])
    assert build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)["added"] == len(names)
    assert ImagePack(path).read(names[2]) == piece


def test_a_photo_that_was_corrected_is_packed_anew(written):
    names, images = names_of(written), loose(written)
    build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)
    other = images[names[1]]
    (written.root / "images" / names[0]).write_bytes(other)
    (written.root / "images" / names[3]).unlink()
    assert build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)["replaced"] == 1
    packed = ImagePack(written.root / "images.h5")
    assert packed.read(names[0]) == other and packed.read(names[3]) == images[names[3]]
    assert build_pack(written.root, names, IMAGE_FOLDERS, quiet=True)["replaced"] == 0


def test_a_full_disk_is_an_error_of_one_line(written, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="images.h5: cannot be written: No space left on device"):
        build_pack(written.root, names_of(written), IMAGE_FOLDERS, quiet=True)
    assert not (written.root / "images.h5").exists()
    monkeypatch.undo()
    assert build_pack(written.root, names_of(written), IMAGE_FOLDERS, quiet=True)["images"] == 6


def test_a_missing_image_stops_the_build_and_is_named(written):
    with pytest.raises(DataError, match="image absent.jpg is in none of"):
        build_pack(written.root, [*names_of(written), "absent.jpg"], IMAGE_FOLDERS, quiet=True)
    assert not (written.root / "images.h5").exists()
