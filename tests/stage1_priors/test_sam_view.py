"""Photos that a run keeps are as large as SAM sees them, and give the same masks."""

import dataclasses
import json

import numpy as np
import pytest

from stage1_priors.sam_view import SamView
from tests.stage1_priors.test_sam import KINDS, folders, picture, prompts_of, proposer_of

__all__ = ["folders"]  # the fixture


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_what_is_kept_are_those_of_the_photo(folders, kind):
    """Both roads in one pass over images of several sizes, those of one size resized together."""
    view = SamView(kind, folders[kind])
    images = [picture(0, 700, 500), picture(1, 700, 500), picture(2, 301, 997), picture(3, 40, 30)]
    kept = [view.kept(image) for image in images]
    assert [one is image for one, image in zip(kept, images, strict=True)] == [False, False, False, True]
    assert [(one.height, one.width) for one in kept] == [
        view.kept_hw((image.height, image.width)) for image in images
    ]
    prompts = prompts_of(images, [0, 0, 1, 2, 2, 3])
    small = dataclasses.replace(prompts, images_B=tuple(kept[index] for index in (0, 0, 1, 2, 2, 3)))
    mine, whole = (proposer_of(folders, kind).propose(one) for one in (small, prompts))
    np.testing.assert_array_equal(mine.map_BGG, whole.map_BGG)
    np.testing.assert_array_equal(mine.iou_B, whole.iou_B)


def test_sizes_come_from_the_models_own_files(tmp_path):
    def view(name, told):
        for file in tmp_path.iterdir():
            file.unlink()
        (tmp_path / name).write_text(json.dumps(told))
        return SamView("sam2", tmp_path)

    square = {"size": {"height": 1024, "width": 1024}}
    assert view("preprocessor_config.json", square).kept_hw((3000, 4000)) == (1024, 1024)
    assert view("processor_config.json", {"image_processor": square}).kept_hw((3000, 4000)) == (1024, 1024)
    assert view("preprocessor_config.json", square).kept_hw((480, 640)) == (480, 640)
    longest = {"size": {"longest_edge": 1024}}
    assert view("preprocessor_config.json", longest).kept_hw((3000, 4000)) == (768, 1024)
    assert view("preprocessor_config.json", longest).kept_hw((1, 8000)) == (1, 8000)  # nothing would be left
    for told in ({}, square | {"do_resize": False}):
        assert view("preprocessor_config.json", told).kept_hw((3000, 4000)) == (3000, 4000)
