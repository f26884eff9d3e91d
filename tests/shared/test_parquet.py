"""A Parquet export as a user's own data: what becomes of each kind of value, and of what cannot be used."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared import parquet
from shared.config import DataConfig
from shared.datasets import load_dataset
from shared.errors import DataError
from shared.masks import encode_rle
from shared.parquet import ParquetRow, chosen_columns, import_parquet, split_of, write_rows

MASK = np.zeros((8, 10), dtype=bool)
MASK[2:5, 1:7] = True
POLYGON = [1.0, 2.0, 7.0, 2.0, 7.0, 5.0, 1.0, 5.0]


def encoded(array, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


PHOTO = encoded(np.full((8, 10, 3), 90, np.uint8), "JPEG")


def row(number=0, split="train", **values):
    filled = {"image": {"bytes": PHOTO, "path": "../../a.jpg"}, "expression": "the mug", **values}
    return ParquetRow(where=f"a.parquet: row {number}", split=split, values=filled)


MASKS = {
    "image": {"bytes": encoded(MASK.astype(np.uint8) * 255), "path": None},
    "flat polygon": POLYGON,
    "polygons": [POLYGON],
    "RLE": encode_rle(MASK),
    "RLE in bytes": {**encode_rle(MASK), "counts": encode_rle(MASK)["counts"].encode()},
}


@pytest.mark.parametrize("form", MASKS)
def test_every_form_of_a_mask_is_read_back(tmp_path, form):
    write_rows([row(mask=MASKS[form], split="validation")], tmp_path / "own.jsonl", corners=False)
    dataset = load_dataset(DataConfig(root=str(tmp_path / "own.jsonl"), dataset=""))
    (sample,) = dataset.samples("val")
    np.testing.assert_array_equal(dataset.mask(sample), MASK)
    assert dataset.image(sample).size == (10, 8)


def test_pairs_splits_and_boxes(tmp_path):
    rows = [
        row(0, expression=["the mug", "a cup"], box=[1, 2, 7, 5]),
        row(1, split="testA", image=PHOTO, mask=None, box=None),
        row(2, image={"bytes": encoded(MASK.astype(np.uint8)), "path": None}, mask=[]),
    ]
    out = tmp_path / "own.jsonl"
    counts = {"images": 2, "pairs": 4, "masks": 0, "no_target": 1, "splits": {"train": 3, "testA": 1}}
    assert write_rows(rows, out, corners=True) == {"path": str(out), **counts}
    dataset = load_dataset(DataConfig(root=str(out), dataset=""))
    first, second, third, fourth = dataset.samples()
    assert [sample.expression for sample in (first, second)] == ["the mug", "a cup"]
    assert first.file_name == second.file_name == third.file_name != fourth.file_name
    assert dataset.weak_box_xyxy_px(first).tolist() == [1, 2, 7, 5]
    assert (third.split, fourth.no_target, dataset.has_mask(third)) == ("testA", True, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks", "own.jsonl"]


def test_an_empty_mask_beside_a_box_is_none(tmp_path):
    """Not a sentence that means nothing: an export writes an absent list as an empty one."""
    rows = [
        row(0, mask=[], box=[1, 2, 6, 3]),
        row(1, mask=[], box=None),
        row(2, mask=[POLYGON], box=[1, 2, 6, 3]),
    ]
    answer = write_rows(rows, tmp_path / "own.jsonl", corners=False)
    assert (answer["pairs"], answer["masks"], answer["no_target"]) == (3, 1, 1)
    dataset = load_dataset(DataConfig(root=str(tmp_path / "own.jsonl"), dataset=""))
    boxed, nothing, drawn = dataset.samples()
    assert [sample.no_target for sample in (boxed, nothing, drawn)] == [False, True, False]
    assert not dataset.has_mask(boxed) and dataset.weak_box_xyxy_px(boxed).tolist() == [1, 2, 7, 5]
    assert dataset.has_mask(drawn)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"bytes": None, "path": "a.jpg"}}, "row 3: image is .* export the files' bytes"),
        ({"image": b"no image"}, "row 3: image: image cannot be read"),
        ({"expression": " "}, "row 3: expression is ' ', not a text"),
        ({"expression": []}, r"row 3: expression is \[\], neither"),
        ({"expression": 7}, "row 3: expression is 7, neither"),
        ({"mask": 7}, "row 3: mask is 7, neither"),
        ({"box": [1, 2, 3]}, r"row 3: box is \[1, 2, 3\], not a list of 4 numbers"),
        ({"box": [1, 2, float("nan"), 3]}, r"row 3: box is \[1, 2, nan, 3\], not a list of 4 numbers"),
        ({"mask": [{"bytes": PHOTO}]}, "row 3: mask is .* neither a number nor ASCII"),
        ({"mask": [1, 2, float("inf"), 3, 4, 5]}, "row 3: mask is .* neither a number nor ASCII"),
        (
            {"mask": {"size": [8, 10], "counts": "\u00e9".encode()}},
            "row 3: mask is .* neither a number nor ASCII",
        ),
        ({"split": 1}, "row 3: split is 1, not a text"),
        ({"split": " "}, "row 3: split is ' ', not a text"),
    ],
)
def test_what_cannot_be_used_is_named_and_no_file_is_made(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        write_rows([row(2), row(3, **values)], tmp_path / "own.jsonl", corners=False)
    assert not (tmp_path / "own.jsonl").exists()


@pytest.mark.parametrize(
    ("named", "split"), [("dev", "val"), (" Validation", "val"), ("TRAIN ", "train"), ("training", "train"),
                         ("testb", "testB"), (" held-out ", "held-out")]
)  # fmt: skip
def test_the_split_of_a_row_by_its_usual_name(tmp_path, named, split):
    answer = write_rows(
        [ParquetRow(where="a", split="train", values={"image": PHOTO, "expression": "x", "split": named})],
        tmp_path / "own.jsonl",
        corners=False,
    )
    assert answer["splits"] == {split: 1}


def test_columns_are_mapped_and_missing_ones_are_named():
    assert chosen_columns(
        ["sentence", "image", "bbox", "id"], {"expression": "sentence", "box": "bbox"}, "a"
    ) == {
        "image": "image",
        "expression": "sentence",
        "box": "bbox",
    }
    with pytest.raises(DataError, match="a: has no column 'expression' for expression .it has image, text."):
        chosen_columns(["image", "text"], {}, "a")
    with pytest.raises(DataError, match="a: has no column 'bbox' for box"):
        chosen_columns(["image", "expression"], {"box": "bbox"}, "a")


def test_the_split_of_a_file(tmp_path):
    says = {
        "train": ["train-00000-of-00004", "train", "default/train/0000", "mug_train", "Training-0", "TRAIN"],
        "val": [
            "validation-0",
            "Val",
            "val",
            "dev-0",
            "refcoco-val",
            "default/validation/0000",
            "val/photos",
            "valid-00000-of-00001",
            "valid/0000",
            "mug_eval",
            "eval/0000",
        ],
        "testA": ["testA-00000", "TESTA", "refcoco_testA", "refcoco_testA-00001-of-00002", "a/testA/b/0"],
        "test": ["test-0", "x-test"],
        None: [
            "tests",
            "photos",
            "contrast",
            "trainer-0",
            "interval",
            "latest",
            "invalid",
            "medieval",
            "evaluate",
        ],
    }
    for split, names in says.items():
        assert {name: split_of(Path(f"{name}.parquet")) for name in names} == dict.fromkeys(names, split)


def test_arguments_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "there.jsonl").write_text("")
    with pytest.raises(DataError, match="must end in .jsonl"):
        import_parquet(tmp_path, tmp_path / "own.json")
    with pytest.raises(DataError, match="there.jsonl is there already"):
        import_parquet(tmp_path, tmp_path / "there.jsonl")
    with pytest.raises(DataError, match="no .parquet file there"):
        import_parquet(tmp_path / "nowhere", tmp_path / "own.jsonl")
    with pytest.raises(DataError, match="column 'sentence': known are image"):
        import_parquet(tmp_path, tmp_path / "own.jsonl", columns={"sentence": "expression"})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs pyarrow: pip install"):
        import_parquet(tmp_path, tmp_path / "own.jsonl")


def test_a_file_of_pyarrow(tmp_path):
    """The rows of a real file, in several batches, and a file that is none."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as written

    image = {"bytes": PHOTO, "path": "a.jpg"}
    count = 2 * parquet._BATCH_ROWS + 1
    columns = {
        "image": [image] * count,
        "sentence": [f"mug {number}" for number in range(count)],
        "mask": [MASKS["image"], *[None] * (count - 1)],
    }
    written.write_table(arrow.table(columns), tmp_path / "validation-00000-of-00001.parquet")
    answer = import_parquet(tmp_path, tmp_path / "own.jsonl", columns={"expression": "sentence"}, quiet=True)
    assert (answer["images"], answer["pairs"], answer["masks"]) == (1, count, 1)
    lines = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert [line["expression"] for line in lines] == columns["sentence"]
    assert {line["split"] for line in lines} == {"val"} and answer["splits"] == {"val": count}
    written.write_table(arrow.table(columns), tmp_path / "more.parquet")
    with pytest.raises(DataError, match="more.parquet: says neither by its name nor .* of which split"):
        import_parquet(tmp_path, tmp_path / "two.jsonl", columns={"expression": "sentence"}, quiet=True)
    named = columns | {"split": ["testA"] * count}
    written.write_table(arrow.table(named), tmp_path / "more.parquet")
    both = import_parquet(tmp_path, tmp_path / "two.jsonl", columns={"expression": "sentence"}, quiet=True)
    assert both["splits"] == {"testA": count, "val": count}
    (tmp_path / "broken.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not Parquet"):
        import_parquet(tmp_path / "broken.parquet", tmp_path / "other.jsonl", quiet=True)
