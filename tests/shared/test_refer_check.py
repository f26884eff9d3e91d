"""The check: a sound set passes, each fault is found once under its kind, and the loader agrees about what blocks."""

import json

import numpy as np
import pytest
from PIL import Image

from shared import refer_check
from shared.check_report import CheckReport, SplitCounts
from shared.errors import DataError
from shared.image_pack_build import build_pack
from shared.refer import load_refer
from shared.refer_check import check_refer
from tests.shared.refer_fixture import BROKEN, set_field, write_refer_fixture


def kinds(report: CheckReport) -> dict[str, int]:
    return {problem.kind: problem.count for problem in report.problems}


def test_a_sound_set(tmp_path):
    report = check_refer(*write_refer_fixture(tmp_path).args)
    assert report.ok and report.problems == () and report.shared_images == {}
    assert report.splits == {
        "train": SplitCounts(images=3, refs=5, sentences=10),
        "val": SplitCounts(images=1, refs=2, sentences=4),
        "testA": SplitCounts(images=1, refs=1, sentences=2),
        "testB": SplitCounts(images=1, refs=1, sentences=2),
    }
    assert report.fingerprint == load_refer(tmp_path, "tiny", "unc").fingerprint()
    assert "train          3       5         10  -" in report.format_table()
    assert report.format_table().endswith("no problems")
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert report.to_dict()["ok"] is True


def annotation(segmentation):
    """An edit of annotation 1007, a polygon on image 101 of 12 x 17."""
    return set_field(1, "annotations", 0, "segmentation", segmentation)


CONTENT = {
    "mask of no area": annotation([[3, 3, 3, 3, 3, 3]]),
    "mask larger than its image": annotation([[1, 1, 19, 1, 19, 5]]),
    "mask not of its image's size": annotation({"size": [17, 12], "counts": [204]}),
    "malformed segmentation": annotation({"size": [12, 17], "counts": [203]}),
    "annotation of unknown image": set_field(1, "annotations", 9, "image_id", 999),
    "image of another size": set_field(1, "images", 5, "height", 11),
    "ref without sentences": set_field(0, 2, "sentences", []),
    "normalised coordinates": annotation([[0.1, 0.2, 0.7, 0.2, 0.7, 0.9]]),
    "missing image file": set_field(1, "images", 0, "file_name", "absent.jpg"),
}


@pytest.mark.parametrize("kind", CONTENT)
def test_faults_of_contents_are_found_but_do_not_block(tmp_path, kind):
    written = write_refer_fixture(tmp_path, edit=CONTENT[kind])
    report = check_refer(*written.args)
    assert not report.ok
    expected = {kind: 1}
    if kind == "image of another size":  # the RLE of its only ref is then of another size too
        expected["mask not of its image's size"] = 1
    if kind == "normalised coordinates":
        expected["mask of no area"] = 1
    assert kinds(report) == expected
    assert not any(problem.blocks for problem in report.problems)
    assert str(tmp_path) in report.problems[0].first[0] and f"1 x {kind}" in report.format_table()
    load_refer(*written.args)


@pytest.mark.parametrize(
    ("segmentation", "hint"),
    [
        ({"size": [17, 12], "counts": [204]}, "; its sides are swapped: a photo is turned upright by"),
        ({"size": [17, 13], "counts": [221]}, ""),
        ([[1, 1, 11, 1, 11, 16]], "; with the sides swapped it lies inside: a photo is turned upright by"),
        ([[1, 1, 14, 1, 14, 16]], ""),
    ],
)
def test_a_mask_drawn_over_a_lying_photo_is_told_so(tmp_path, segmentation, hint):
    (problem,) = check_refer(*write_refer_fixture(tmp_path, edit=annotation(segmentation)).args).problems
    said = problem.first[0].partition("its image of 12 x 17")[2]
    assert said.startswith(hint) and bool(said) == bool(hint)


def test_a_polygon_may_touch_the_border(tmp_path):
    written = write_refer_fixture(tmp_path, edit=annotation([[0, 0, 17.6, 0, 17.6, 12.5, -0.5, 12]]))
    assert check_refer(*written.args).ok


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_the_loader_refuses_the_check_reports(tmp_path, name):
    edit, _ = BROKEN[name]
    written = write_refer_fixture(tmp_path, edit=edit)
    with pytest.raises(DataError) as caught:
        load_refer(*written.args)
    try:
        report = check_refer(*written.args)
    except DataError as error:  # nothing could be read at all: the same line
        assert str(error) == str(caught.value)
        return
    assert not report.ok
    blocking = [problem for problem in report.problems if problem.blocks]
    if blocking:
        assert str(caught.value).startswith(blocking[0].first[0])
        assert "the loader refuses this" in report.format_table()


@pytest.mark.parametrize(("cut", "readable"), [(40, False), (0, True)])
def test_truncated_image(tmp_path, cut, readable):
    written = write_refer_fixture(tmp_path)
    path = tmp_path / "images" / "tiny_000101.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - cut])
    report = check_refer(*written.args)
    assert report.ok is readable
    if not readable:
        assert kinds(report) == {"unreadable image file": 1}
        assert report.problems[0].first[0].startswith(f"{path}: image 101: ")


def test_images_can_be_left_unopened(tmp_path):
    written = write_refer_fixture(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no image")
    report = check_refer(*written.args, read_images=False)
    assert report.ok and "image files were not opened" in report.format_table()
    assert kinds(check_refer(*written.args)) == {"unreadable image file": 6}


def test_many_faults_at_once_and_only_the_first_rows(tmp_path):
    def edit(refs, instances):
        for ref in refs[:7]:
            ref["sentences"][0].update(sent="", raw="")
        refs[8]["ann_id"] = 4242

    report = check_refer(*write_refer_fixture(tmp_path, edit=edit).args)
    assert kinds(report) == {"empty expression": 7, "ref of unknown annotation": 1}
    assert (
        len(report.problems[0].first) == 7 and "    ... 2 more (--json lists them)" in report.format_table()
    )
    assert report.splits["train"].sentences == 5 and "testA" not in report.splits


def test_shared_images_are_a_note(tmp_path):
    report = check_refer(*write_refer_fixture(tmp_path, edit=set_field(0, 1, "split", "val")).args)
    assert report.ok and report.shared_images == {"train/val": 1}
    assert "note: train/val share 1 images" in report.format_table()


def test_published_sizes(tmp_path, monkeypatch):
    written = write_refer_fixture(tmp_path, dataset="refcoco")
    report = check_refer(*written.args)
    assert kinds(report) == {"not the published size": 5}
    assert "split train: 3 images where 16994 were published" in report.problems[0].first[0]
    sizes = {"train": {"images": 3, "refs": 5}, "val": {"sentences": 4}}
    monkeypatch.setitem(refer_check.PUBLISHED_SIZES, ("refcoco", "unc"), sizes)
    report = check_refer(*written.args)
    assert report.ok and "3 images, 5 refs" in report.format_table()


def test_progress_goes_to_standard_error_or_nowhere(tmp_path, capfd):
    args = write_refer_fixture(tmp_path).args
    check_refer(*args)
    out, err = capfd.readouterr()
    assert out == "" and "checking masks: " in err and "checking images: 6/6 images (100%)" in err
    check_refer(*args, progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_set_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(DataError, match="not found"):
        check_refer(tmp_path, "absent", "unc")


def test_turned_image_is_of_another_size(tmp_path):
    written = write_refer_fixture(tmp_path)
    Image.new("RGB", (12, 17)).save(tmp_path / "images" / "tiny_000101.jpg")
    report = check_refer(*written.args)
    assert kinds(report) == {"image of another size": 1}
    assert "height x width 17 x 12, but" in report.problems[0].first[0]


@pytest.mark.parametrize("packed", [False, True])
def test_images_that_exif_turns_are_a_note(tmp_path, packed):
    """Their masks stay as they were drawn; orientations 2 to 4 change no size."""
    written = write_refer_fixture(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (17, 12)).save(tmp_path / "images" / "tiny_000101.jpg", exif=exif)
    if packed:
        names = [path.name for path in (tmp_path / "images").iterdir()]
        build_pack(tmp_path, names, ("images",), quiet=True)
    report = check_refer(*written.args)
    assert report.ok and report.turned == {"tiny_000101.jpg": 3}
    told = "note: 1 images are turned upright by their EXIF orientation, what was drawn on them is not: tiny"
    assert told in report.format_table() and report.to_dict()["turned"] == {"tiny_000101.jpg": 3}
    assert check_refer(*written.args, read_images=False).turned == {}


def test_copies_of_an_image_are_that_image_whatever_their_names(tmp_path):
    """Image 104 of val is 101 of train under its own name; 105 of testA is 103 of train, by the same name."""

    def edit(refs, instances):
        images = {image["id"]: image for image in instances["images"]}
        images[104].update(height=12, width=17)
        images[105].update({**images[103], "id": 105})
        for row in instances["annotations"]:
            if row["image_id"] in (104, 105):
                row["segmentation"] = [[1, 2, 5, 2, 5, 7]]

    written = write_refer_fixture(tmp_path, edit=edit)
    folder = tmp_path / "images"
    (folder / "tiny_000104.jpg").write_bytes((folder / "tiny_000101.jpg").read_bytes())
    report = check_refer(*written.args)
    assert report.ok and report.shared_images == {"train/val": 1, "train/testA": 1}
    assert sorted(report.copies.items()) == [
        ("tiny_000103.jpg (id 105)", "tiny_000103.jpg (id 103)"),
        ("tiny_000104.jpg (id 104)", "tiny_000101.jpg (id 101)"),
    ]
    assert "note: 2 images are copies of others, byte for byte: " in report.format_table()
    assert check_refer(*written.args, read_images=False).shared_images == {}


def test_a_loose_file_that_is_another_than_in_the_pack_is_told(tmp_path):
    written = write_refer_fixture(tmp_path)
    path = tmp_path / "images" / "tiny_000101.jpg"
    build_pack(tmp_path, [file.name for file in (tmp_path / "images").iterdir()], ("images",), quiet=True)
    (tmp_path / "images" / "tiny_000103.jpg").unlink()
    assert check_refer(*written.args).ok
    Image.new("RGB", (17, 12)).save(path)
    report = check_refer(*written.args)
    assert kinds(report) == {"image file other than in the pack": 1}
    assert report.problems[0].first[0].startswith(f"{path}: image 101: differs from its copy in the pack")
    assert "run `l2l data pack`" in report.problems[0].first[0]


def test_names_of_splits_that_are_nearly_usual_ones_are_told(tmp_path):
    def edit(refs, instances):
        for ref in refs:
            ref["split"] = {"train": "TRAIN ", "val": "dev", "testA": "held-out"}.get(ref["split"], "testB")

    report = check_refer(*write_refer_fixture(tmp_path, edit=edit).args)
    assert report.ok
    assert report.unusual_splits == {"TRAIN ": "train", "dev": "val"}
    assert "note: split 'TRAIN ' is not read as 'train'" in report.format_table()
    assert "note: no split 'train': there is nothing to learn from, only to score" in report.format_table()


def test_grey_of_twelve_bits_in_sixteen_is_told(tmp_path):
    written = write_refer_fixture(tmp_path)
    values = np.full((9, 9), 4095, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "images" / "tiny_000102.png")
    report = check_refer(*written.args)
    assert report.ok and report.dim == {"tiny_000102.png": 4095}
    assert "note: 1 images of 16-bit grey use 12 bits or fewer" in report.format_table()
    Image.fromarray(values + 1).save(tmp_path / "images" / "tiny_000102.png")
    assert check_refer(*written.args).dim == {}
