"""The labelled subset: the published draw, float shares, id files."""

import json
import random
from pathlib import Path

import pytest

from shared.errors import DataError
from shared.splits import labelled_from_file, labelled_image_ids, read_id_file, split_hash

PUBLISHED = Path(__file__).parent / "data" / "refcoco_unc_1pct_positions.json"


def test_the_published_one_percent_of_refcoco():
    published = json.loads(PUBLISHED.read_text())
    assert len(published["positions"]) == 169
    drawn = labelled_image_ids(range(published["num_train_images"]), 0.01, seed=0)
    assert sorted(drawn) == published["positions"]
    assert sorted(labelled_image_ids(range(16994), 0.01, seed=1)) != published["positions"]


def test_the_draw_is_the_global_generators_in_value_and_order():
    state = random.getstate()
    try:
        random.seed(0)
        expected = random.sample(range(16994), 169)
    finally:
        random.setstate(state)
    assert labelled_image_ids(range(16994), 0.01, seed=0) == expected
    assert random.getstate() == state


def test_ids_are_drawn_by_position():
    ids = [5_000_000 - 7 * index for index in range(500)]
    drawn = labelled_image_ids(ids, 0.05, seed=3)
    assert drawn == [ids[position] for position in labelled_image_ids(range(500), 0.05, seed=3)]
    assert len(set(drawn)) == 25


@pytest.mark.parametrize(
    ("fraction", "num_images", "num_labelled"),
    [
        (0.001, 16994, 16),
        (0.01, 16994, 169),
        (0.05, 16994, 849),
        (0.1, 16994, 1699),
        (0.001, 21899, 21),
        (0.01, 21899, 218),
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        (0.07, 100, 7),  # 0.07 * 100 is 7.000000000000001
        (0.999, 10, 9),
        (1.0, 7, 7),
        (1e-5, 100_000, 1),
    ],
)
def test_number_of_labelled_images(fraction, num_images, num_labelled):
    assert len(labelled_image_ids(range(num_images), fraction, seed=0)) == num_labelled


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_fractions_out_of_range(fraction):
    with pytest.raises(DataError, match="not in"):
        labelled_image_ids(range(10), fraction, seed=0)


def test_a_fraction_of_no_image():
    with pytest.raises(
        DataError, match="0.01 of 60 images with a mask is no image at all; fraction=1 takes all"
    ):
        labelled_image_ids(range(60), 0.01, seed=0)


def test_hash_is_of_the_set():
    assert split_hash([3, 1, 2]) == split_hash([1, 2, 3]) == split_hash(iter([2, 3, 1]))
    assert len({split_hash([1, 2, 3]), split_hash([1, 2]), split_hash([12, 3]), split_hash([])}) == 4


@pytest.mark.parametrize(
    "text", ["[3, 1, 2]", '{"image_ids": [3, 1, 2], "seed": 0}', "3\n1\n2\n", "# ids\n\n3 # first\n 1\n2"]
)
def test_id_files(tmp_path, text):
    path = tmp_path / "ids"
    path.write_text(text)
    assert read_id_file(path) == [3, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no image"),
        ("[]", "holds no image"),
        ("1\ntwo\n", "line 2: 'two' is not an image id"),
        ("1\n\n-2\n", "line 3: '-2' is not an image id"),
        ("[1, 2.5]", "entry 2: 2.5 is not an image id"),
        ("[1, true]", "entry 2: True is not an image id"),
        ("[1, 2, 1]", "entry 3: image id 1 stands at entry 1 already"),
        ('{"ids": [1]}', "expected a list"),
        ("[1, 2", "not JSON"),
    ],
)
def test_bad_id_files_name_file_and_row(tmp_path, text, message):
    path = tmp_path / "ids.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_id_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


IMAGES = {10: "a.jpg", 20: "new/b.jpg", 30: "0030", 40: "twice.jpg", 50: "twice.jpg"}


def test_listed_images_must_be_training_images(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("30\n10\n")
    assert labelled_from_file(path, IMAGES) == [30, 10]
    with pytest.raises(DataError, match="line 1: 30 is not a training image"):
        labelled_from_file(path, {10: "a.jpg"})
    with pytest.raises(DataError, match="cannot be read"):
        read_id_file(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    "text",
    [
        "new/b.jpg\na.jpg",
        "# labelled\n new/b.jpg  # the first\n10\n",
        '["new/b.jpg", "a.jpg"]',
        '["new/b.jpg", 10]',
        '{"image_ids": [4, 5], "file_names": ["new/b.jpg", "a.jpg"]}',
        '{"image_ids": [20, 10], "seed": 0}',
    ],
)
def test_images_may_be_listed_by_name(tmp_path, text):
    path = tmp_path / "labelled"
    path.write_text(text)
    assert labelled_from_file(path, IMAGES) == [20, 10]


def test_a_number_sign_in_a_name_and_marks_of_editors(tmp_path):
    path = tmp_path / "labelled"
    path.write_text("mug#2.jpg # the second\n#mug#3.jpg\n", encoding="utf-8-sig")
    assert labelled_from_file(path, {7: "mug#2.jpg", 8: "mug"}) == [7]
    named = {1: "img #2.jpg", 2: "img", 3: "#3.jpg", 4: "mug.jpg"}
    path.write_text("img #2.jpg\n #3.jpg \nmug.jpg # img #2.jpg\n# img\n")
    assert labelled_from_file(path, named) == [1, 3, 4]
    path.write_text("[1, 2]", encoding="utf-8-sig")
    assert read_id_file(path) == [1, 2]
    path.write_text("1\n", encoding="utf-16")
    with pytest.raises(DataError, match="labelled: is UTF-16; save it as UTF-8"):
        read_id_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\n\nb.jpg\n", "line 3: 'b.jpg' is not a training image of this data set that carries a mask"),
        ('["a.jpg", "A.jpg"]', "entry 2: 'A.jpg' is not a training image"),
        ('["0030", "a.jpg", 30]', "entry 3: 30 stands at entry 1 already"),
        ("a.jpg\n10\n", "line 2: 10 stands at line 1 already"),
        ("twice.jpg", r"line 1: 'twice.jpg' is the name of images \[40, 50\]; give an id instead"),
        ('["a.jpg", null]', "entry 2: None is neither an image id nor a file name"),
        ('{"file_names": "a.jpg"}', "expected a list of images, or an object with one under file_names or"),
    ],
)
def test_names_that_fit_nothing_or_too_much_are_refused_with_file_and_row(tmp_path, text, message):
    path = tmp_path / "labelled"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        labelled_from_file(path, IMAGES)
    assert str(caught.value).startswith(f"{path}: ")
