"""The example of a user's own data: sound, documented, every form of mask in it, and mostly without one."""

import json

import pytest

from shared.config import DataConfig
from shared.datasets import dataset_layout
from shared.errors import DataError
from shared.jsonl import load_jsonl
from shared.jsonl_lines import FIELDS
from shared.refer_check import check_layout
from shared.synth.example import COMMENT, write_example


@pytest.mark.parametrize(("images", "masks"), [(8, 3), (40, 4)])
def test_the_example_passes_the_check(tmp_path, images, masks):
    made = write_example(tmp_path / "mine", images)
    assert (made["train"], made["train_masks"], made["val"]) == (images, masks, masks)
    report = check_layout(dataset_layout(DataConfig(root=made["path"], dataset="")))
    assert report.ok, report.format_table()
    assert report.unlabelled == {"train": images - masks} and report.splits["val"].refs == masks
    dataset = load_jsonl(made["path"])
    assert len(dataset.drawn_image_ids()) == masks
    for sample in dataset.samples():
        if dataset.has_mask(sample):
            assert dataset.mask(sample).sum() > 20
    lines = [line for line in open_lines(made["path"]) if not line.startswith("#")]
    kinds = {type(json.loads(line).get("mask")).__name__ for line in lines}
    assert kinds == {"str", "list", "dict", "NoneType"}
    assert any("box" in line for line in lines) and any("point" in line for line in lines)


def open_lines(path):
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def test_same_seed_same_file_and_every_field_is_explained(tmp_path):
    first, second = (write_example(tmp_path / name)["path"] for name in "ab")
    assert open_lines(first) == open_lines(second)
    for name in FIELDS:
        assert f"\n# {name} " in COMMENT


def test_refusals(tmp_path):
    with pytest.raises(DataError, match="images is 3"):
        write_example(tmp_path, 3)
    write_example(tmp_path)
    with pytest.raises(DataError, match="photos.jsonl is there already"):
        write_example(tmp_path)
