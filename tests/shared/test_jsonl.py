"""A user's own data: forms of masks, what counts as labelled, and one line for every broken row."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from shared.config import DataConfig
from shared.datasets import dataset_layout, load_dataset
from shared.errors import DataError
from shared.jsonl import load_jsonl, read_lines, read_pairs
from shared.jsonl_lines import BadLine
from shared.masks import encode_rle
from shared.refer import MaskAccessError, ReferringDataset
from shared.refer_check import check_layout

SIZE_HW = (8, 10)
MASK = np.zeros(SIZE_HW, dtype=bool)
MASK[2:5, 1:7] = True


def write(folder, rows, name="photos.jsonl"):
    """Three images, one of them turned by its EXIF data, a mask image, and the rows."""
    folder.mkdir(exist_ok=True)
    for image in ("a.jpg", "b.jpg"):
        Image.new("RGB", SIZE_HW[::-1]).save(folder / image)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE_HW).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.where(MASK, 255, 0).astype(np.uint8)).save(folder / "mask.png")
    for part, columns in (("left", slice(0, 5)), ("right", slice(4, 10))):
        half = np.zeros(SIZE_HW, dtype=np.uint8)
        half[:, columns] = MASK[:, columns]
        Image.fromarray(half).save(folder / f"{part}.png")
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pair(image="a.jpg", expression="the mug", **more):
    return {"image": image, "expression": expression, **more}


FORMS = {
    "polygons": [[1, 2, 7, 2, 7, 5, 1, 5]],
    "compressed": encode_rle(MASK),
    "runs": {"size": [8, 10], "counts": [10, 3, 5, 3, 5, 3, 5, 3, 5, 3, 5, 3, 27]},
    "file": "mask.png",
    "files": ["left.png", "right.png"],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask(tmp_path, form):
    path = write(tmp_path, ["# a note", "", pair("turned.jpg", mask=FORMS[form], split="val"), pair()])
    dataset = load_jsonl(path)
    (sample,) = dataset.samples("val")
    assert (sample.sample_id, sample.height, sample.width) == ("photos.jsonl.3", *SIZE_HW)
    assert dataset.image(sample).size == SIZE_HW[::-1]
    assert dataset.has_mask(sample) and isinstance(dataset, ReferringDataset)
    np.testing.assert_array_equal(dataset.mask(sample), MASK)
    assert dataset.box_xyxy_px(sample).tolist() == [1, 2, 7, 5]
    report = check_layout(dataset_layout(DataConfig(root=str(path), dataset="")))
    assert report.ok and report.turned == {"turned.jpg": 6}


@pytest.mark.parametrize(
    ("label", "listed"),
    [
        ({"mask": [[1, 2, 7, 2, 7, 5]]}, True),
        ({"box": [1, 2, 6, 3]}, True),
        ({"point": [1, 2]}, True),
        ({"mask": []}, False),
        ({}, False),
    ],
)
def test_turned_photos_on_which_something_was_drawn_are_listed(tmp_path, label, listed):
    """Drawn over the unturned pixels it may lie inside the upright ones, too."""
    path = write(tmp_path, [pair("turned.jpg", **label), pair(mask=None)])
    report = check_layout(dataset_layout(DataConfig(root=str(path), dataset="")))
    assert report.ok and report.turned == ({"turned.jpg": 6} if listed else {})
    told = (
        "1 images are turned upright by their EXIF orientation, what was drawn on them is not: turned.jpg (6)"
    )
    assert (told in report.format_table()) is listed


def test_who_has_a_mask_is_labelled(tmp_path):
    rows = [
        pair(mask=None),
        pair("b.jpg", mask="mask.png"),
        pair("b.jpg", "the lid"),
        pair("b.jpg", "no one", mask=[]),
    ]
    dataset = load_dataset(DataConfig(root=str(write(tmp_path, rows)), dataset="whatever"))
    assert [dataset.has_mask(sample) for sample in dataset.samples("train")] == [False, True, False, True]
    assert dataset.train_image_ids() == [1, 2] and dataset.drawn_image_ids() == [2]
    absent = dataset.samples()[3]
    assert [sample.no_target for sample in dataset.samples()] == [False, False, False, True]
    assert not dataset.mask(absent).any()
    with pytest.raises(DataError, match="photos.jsonl: line 1: has no mask"):
        dataset.mask(dataset.samples()[0])


def test_a_mask_of_another_split_labels_no_train_image(tmp_path):
    rows = [pair(), pair("b.jpg", mask="mask.png"), pair(expression="the lid", mask="mask.png", split="val")]
    dataset = load_jsonl(write(tmp_path, rows))
    assert dataset.train_image_ids() == [1, 2] and dataset.drawn_image_ids() == [2]


def test_a_reader_without_masks_does_not_know_where_they_lie(tmp_path):
    dataset = load_jsonl(write(tmp_path, [pair(mask="mask.png"), pair("b.jpg", mask=FORMS["compressed"])]))
    reader = dataset.without_masks([])
    for sample in reader.samples():
        for read in (reader.mask, reader.box_xyxy_px):
            with pytest.raises(MaskAccessError):
                read(sample)
    assert b"mask.png" in pickle.dumps(dataset) and b"mask.png" not in pickle.dumps(reader)
    assert FORMS["compressed"]["counts"].encode() not in pickle.dumps(reader)


def test_more_masks_keep_the_fingerprint_and_other_words_do_not(tmp_path):
    rows = [pair(), pair("b.jpg", split="val")]
    first = load_jsonl(write(tmp_path, rows)).fingerprint()
    assert (
        load_jsonl(write(tmp_path, [pair(mask="mask.png", box=[1, 2, 3, 4]), rows[1]])).fingerprint() == first
    )
    for other in ([pair(expression="the cup"), rows[1]], [pair(split="val"), rows[1]], ["#", *rows]):
        assert load_jsonl(write(tmp_path, other)).fingerprint() != first


def test_weak_labels(tmp_path):
    dataset = load_jsonl(write(tmp_path, [pair(box=[1, 2, 3, 4], point=[2, 3.5]), pair()]))
    weak, bare = dataset.samples()
    assert dataset.weak_box_xyxy_px(weak).tolist() == [1, 2, 4, 6]
    assert dataset.weak_point_xy_px(weak).tolist() == [2, 3.5]
    assert dataset.weak_box_xyxy_px(bare) is None and dataset.weak_point_xy_px(bare) is None
    assert not dataset.has_mask(weak)


def test_weak_labels_may_fill_their_image(tmp_path):
    """Of width 10 and height 8, and half a pixel more."""
    dataset = load_jsonl(write(tmp_path, [pair(box=[-0.5, -0.5, 11, 9], point=[10, 8])]))
    (sample,) = dataset.samples()
    assert dataset.weak_box_xyxy_px(sample).tolist() == [-0.5, -0.5, 10.5, 8.5]
    assert dataset.weak_point_xy_px(sample).tolist() == [10, 8]


def test_a_config_names_the_data_set_after_its_file(tmp_path):
    config = DataConfig(root=str(tmp_path / "my-photos.jsonl"), dataset="refcoco", split_by="umd")
    assert (config.dataset, config.split_by, config.is_jsonl) == ("my-photos", "jsonl", True)
    with pytest.raises(DataError, match="rename the file"):
        load_jsonl(write(tmp_path, [pair()], name="my photos.jsonl"))


BROKEN = {
    "not json": ("{", "not JSON"),
    "list": ([1], "expected an object, found list"),
    "typo": (pair(masks="mask.png"), "unknown field 'masks'"),
    "field twice": (
        '{"image": "a.jpg", "expression": "the mug", "mask": "mask.png", "expression": "the jar", "mask": null}',
        "field 'expression' is given twice",
    ),
    "field of an RLE twice": (
        '{"image": "a.jpg", "expression": "the mug", "mask": {"size": [8, 10], "counts": [80], "counts": [0, 80]}}',
        "field 'counts' is given twice",
    ),
    "no image": ({"expression": "x"}, "'image' is None"),
    "blank": (pair(expression=" "), "'expression' is ' ', not a text"),
    "split": (pair(split=3), "'split' is 3"),
    "empty split": (pair(split=""), "'split' is ''"),
    "split with a folder": (pair(split="../val"), r"'split' is '../val'; it names files"),
    "two splits": (pair(split="train,val"), r"'split' is 'train,val'; it names files"),
    "mask": (pair(mask=7), "'mask' is 7; it must be polygons"),
    "half an emoji": (pair(expression="red \ud83d mug"), r"'red \\ud83d mug', which holds half a character"),
    "endless box": (pair(box=[1, 2, 3, 10**400]), r"'box' is \[1, 2, 3, 1000.*, not a list of 4 numbers"),
    "short box": (pair(box=[1, 2, 3]), r"'box' is \[1, 2, 3\], not a list of 4 numbers"),
    "nan box": ('{"image": "a.jpg", "expression": "x", "box": [1, 2, NaN, 3]}', "'box' is"),
    "outside box": (pair(box=[5, 5, 9, 2]), r"box \[5.0, 5.0, 9.0, 2.0\] .* width 10 and height 8"),
    "box below": (pair(box=[1, 5, 2, 5]), r"box \[1.0, 5.0, 2.0, 5.0\] .* width 10 and height 8"),
    "flat box": (pair(box=[5, 5, 0, 2]), "is empty or leaves"),
    "outside point": (pair(point=[11, 2]), "point .* lies outside"),
    "point below": (pair(point=[2, 9]), "point .* lies outside"),
    "absent image": (pair("absent.jpg"), "image 'absent.jpg': .*/absent.jpg: not found"),
    "escape": (pair("../a.jpg"), "leads out of the image folder"),
    "absolute": (pair("/etc/passwd"), "leads out of the image folder"),
    "broken image": (pair("photos.jsonl"), "image cannot be read"),
    "absent mask": (pair(mask="absent.png"), "mask 'absent.png': "),
    "mask that is no name": (pair(mask="PPYo0" * 400), r"mask 'PPYo0.*\.\.\.: .* File name too long"),
    "image that is no name": (pair("b" * 400), r"image 'bbb.*\.\.\.: .* File name too long"),
    "backslash": (pair("images\\0.jpg"), r"holds a backslash; write 'images/0.jpg'"),
    "backslash in a mask": (pair(mask="masks\\0.png"), r"holds a backslash; write 'masks/0.png'"),
    "Windows": (pair("C:\\0.jpg"), "leads out of the image folder"),
    "absent second mask": (pair(mask=["mask.png", "absent.png"]), "absent.png: not found"),
    "mixed masks": (pair(mask=["mask.png", [1, 2, 7, 2, 7, 5]]), "'mask' is .* polygons, an RLE, file names"),
    "empty mask": (pair(mask=""), "'mask' is ''; leave it out, or write null"),
    "escaping mask": (pair(mask="../mask.png"), "leads out of the image folder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_lines_are_named(tmp_path, name):
    row, message = BROKEN[name]
    path = write(tmp_path, [pair(), row])
    with pytest.raises(DataError, match=f"line 2: .*{message}") as caught:
        load_jsonl(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    report = check_layout(dataset_layout(DataConfig(root=str(path), dataset="")))
    assert [problem.count for problem in report.problems if problem.blocks] == [1]


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        ([[1, 2, 3]], "malformed segmentation"),
        ([[0, 0, 40, 0, 40, 4]], "mask larger than its image"),
        ({"size": [10, 8], "counts": [80]}, "mask not of its image's size"),
        ("a.jpg", "malformed segmentation"),
        ("small.png", "malformed segmentation"),
    ],
)
def test_the_check_reads_every_mask(tmp_path, mask, kind):
    path = write(tmp_path, [pair(), pair("b.jpg", mask=mask)])
    Image.new("L", (3, 3), 255).save(tmp_path / "small.png")
    report = check_layout(dataset_layout(DataConfig(root=str(path), dataset="")))
    assert [problem.kind for problem in report.problems] == [kind]
    assert report.problems[0].first[0].startswith(f"{path}: line 2: ")
    assert "note: train: 1 of 2 refs carry no mask" in report.format_table()


def test_an_empty_or_missing_file(tmp_path):
    with pytest.raises(DataError, match="holds no expression"):
        load_jsonl(write(tmp_path, ["# nothing"]))
    with pytest.raises(DataError, match="none.jsonl: not found"):
        load_jsonl(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,expression\na.jpg,the mug\n", "line 1: this looks like CSV; one JSON object a line"),
        ('# mine\n"a.jpg";"the mug"\n', "line 2: this looks like CSV"),
        ('[\n{"image": "a.jpg"}\n]\n', "line 1: this looks like a JSON list"),
        ('[{"image": "a.jpg", "expression": "x"}]', "line 1: this looks like a JSON list"),
        ('{\n  "image": "a.jpg"\n}\n', "line 1: this looks like JSON over several lines"),
    ],
)
def test_another_format_is_named_once(tmp_path, text, message):
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    for read in (load_jsonl, read_pairs, read_lines):
        with pytest.raises(DataError, match=message):
            read(path)


def test_a_broken_first_line_costs_itself_alone_where_others_are_sound(tmp_path):
    path = tmp_path / "wanted.jsonl"
    path.write_text("oh, no\n" + json.dumps(pair()) + "\n")
    assert [type(line).__name__ for line in read_pairs(path)] == ["BadLine", "Line"]


def test_marks_of_editors(tmp_path):
    path = write(tmp_path, [pair()])
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert len(load_jsonl(path).samples()) == 1
    path.write_text(text, encoding="utf-16")
    with pytest.raises(DataError, match="photos.jsonl: is UTF-16; save it as UTF-8"):
        load_jsonl(path)


def test_pairs_to_predict_are_read_without_their_images(tmp_path):
    path = tmp_path / "wanted.jsonl"
    rows = [
        pair("later.jpg"),
        pair("later.jpg", id="a-7"),
        pair(id=3),
        "{torn",
        {"image": "a.jpg", "id": 4.5},
        pair(id=True),
        pair(id=None),
    ]
    path.write_text(
        "# wanted\n" + "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    found = read_pairs(path)
    assert [line.number for line in found] == [2, 3, 4, 5, 6, 7, 8]
    assert [line.own_id for line in found] == [None, "a-7", 3, None, 4.5, None, None]
    faults = [line.fault.partition(":")[0] for line in found if isinstance(line, BadLine)]
    assert faults == ["not JSON", "'expression' is None, not a text", "'id' is True, not a text or a number"]
    path.write_text('{"image": "a.jpg", "id": "b-8", "image": "b.jpg"}\n')
    (twice,) = read_pairs(path)
    assert isinstance(twice, BadLine) and (twice.own_id, twice.fault) == (
        "b-8",
        "field 'image' is given twice",
    )
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no line"):
        read_pairs(path)
    with pytest.raises(DataError, match="line 1: unknown field 'id'"):
        load_jsonl(write(tmp_path, [pair(id="a-7")]))


def test_a_pair_given_twice_is_told(tmp_path):
    rows = [
        pair(mask="mask.png"),
        pair("b.jpg"),
        pair(expression="The mug"),
        pair(split="val"),
        pair(expression="cup"),
    ]
    report = check_layout(dataset_layout(DataConfig(root=str(write(tmp_path, rows)), dataset="")))
    (problem,) = report.problems
    assert (problem.kind, problem.count, problem.blocks) == ("pair given twice", 2, False)
    assert "photos.jsonl: line 3: 'The mug' of a.jpg (train), as line 1 (train)" in problem.first[0]
    assert "line 4: 'the mug' of a.jpg (val), as line 1 (train)" in problem.first[1]


def test_scores_on_images_of_train_are_said_not_to_be_trusted(tmp_path):
    rows = [
        pair(),
        pair("b.jpg"),
        pair(expression="the plate", split="val", mask="mask.png"),
        pair(expression="the spoon", split="val", mask="mask.png"),
        pair("c.jpg", split="val"),
        pair("c.jpg", expression="the fork", split="test"),
    ]
    Image.new("RGB", (10, 8), "red").save(tmp_path / "c.jpg")
    report = check_layout(dataset_layout(DataConfig(root=str(write(tmp_path, rows)), dataset="")))
    assert report.ok and report.to_dict()["seen_sentences"] == {"val": 2}
    first, second = [line for line in report.format_table().splitlines() if "share" in line]
    spoilt = "scores on the 2 of 3 sentences of val that are about them are not to be trusted"
    assert first == f"note: train/val share 1 images: {spoilt}"
    assert second == "note: val/test share 1 images"


def test_a_copy_of_an_image_of_train_spoils_scores_as_the_image_does(tmp_path):
    path = write(tmp_path, [pair("turned.jpg"), pair("copy.jpg", "the plate", split="val", mask="mask.png")])
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes())
    report = check_layout(dataset_layout(DataConfig(root=str(path), dataset="")))
    assert report.ok and report.seen_sentences == {"val": 1} and report.shared_images == {"train/val": 1}
    assert report.copies == {"copy.jpg (line 2)": "turned.jpg (line 1)"}


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ({"box": [0.1, 0.2, 0.3, 1]}, 1),
        ({"point": [0.5, 0.5]}, 1),
        ({"box": [0, 0, 1, 1]}, 0),
        ({"box": [0.5, 0.5, 2, 2], "point": [1, 1]}, 0),
    ],
)
def test_shares_of_an_image_are_told_from_pixels(tmp_path, label, found):
    path = write(tmp_path, [pair(), pair("b.jpg", **label)])
    report = check_layout(dataset_layout(DataConfig(root=str(path), dataset="")))
    assert [problem.kind for problem in report.problems] == ["normalised coordinates"] * found
    if found:
        assert (
            "line 2: " in report.problems[0].first[0] and "pixels are expected" in report.problems[0].first[0]
        )


def test_one_image_by_two_names_is_one_image(tmp_path):
    """Else it would be labelled and unlabelled, or in train and val, without a word."""
    path = write(tmp_path, [pair(mask="mask.png"), pair("./a.jpg", "the lid"), pair(".//a.jpg", split="val")])
    dataset = load_jsonl(path)
    assert {(sample.image_id, sample.file_name) for sample in dataset.samples()} == {(1, "a.jpg")}
    assert [line.image for line in read_lines(path)] == ["a.jpg"] * 3
    report = check_layout(dataset_layout(DataConfig(root=str(path), dataset="")))
    (problem,) = report.problems
    assert problem.kind == "pair given twice" and "line 3: 'the mug' of a.jpg (val)" in problem.first[0]
    assert report.shared_images == {"train/val": 1}
