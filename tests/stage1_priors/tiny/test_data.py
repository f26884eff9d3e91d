"""Scenes and batches: reproducible, apart from each other, pixels as the real processor gives them."""

import numpy as np
import pytest
import torch
from PIL import Image

from stage1_priors.tiny.data import MAX_OBJECTS, answer_box_px, ask, collate, normalise, served_image
from stage1_priors.tiny.export import PREPROCESSOR
from stage1_priors.tiny.score import HELD_OUT, served_pixels
from stage1_priors.tiny.tokenizer import ANSWER_LENGTH, END, build_tokenizer

TOKENIZER = build_tokenizer()


def test_a_scene_is_a_function_of_its_key() -> None:
    first, again, other = ask("mllm", 0, 5, 4), ask("mllm", 0, 5, 4), ask(HELD_OUT, 0, 5, 4)
    assert first.questions == again.questions
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))


def test_questions_are_different_and_in_range() -> None:
    for index in range(20):
        scene = ask("test", 0, index, 4)
        texts = [question.expression for question in scene.questions]
        assert 1 <= len(texts) <= 4 and len(set(texts)) == len(texts)
        assert all(0 <= question.target < len(scene.boxes_K4) <= MAX_OBJECTS for question in scene.questions)
        assert scene.boxes_K4.min() >= 0 and scene.boxes_K4.max() <= 112


def test_boxes_are_scaled_to_the_image_the_model_sees() -> None:
    # The object lies where its box says: the box of the drawn scene times 112 / 128.
    image_HW3 = np.zeros((128, 128, 3), dtype=np.uint8)
    image_HW3[32:64, 64:128] = 255
    bright_HW = np.asarray(served_image(image_HW3))[..., 0] > 127
    rows, columns = np.nonzero(bright_HW)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert (
        answer_box_px(np.array([64, 32, 128, 64]) * 112 / 128)
        == tuple(int(v) for v in found)
        == (56, 28, 112, 56)
    )


def test_answer_box_rounds_and_clips() -> None:
    assert answer_box_px(np.array([-0.7, 0.49, 0.5, 112.6])) == (0, 0, 1, 112)


def test_collate_lays_out_prefix_and_questions() -> None:
    scenes = [ask("test", 2, index, 3) for index in range(3)]
    batch = collate(scenes, TOKENIZER)
    assert len(batch.answer_Q2) == sum(len(scene.questions) for scene in scenes)
    for number, (row, start) in enumerate(batch.answer_Q2.tolist()):
        answer = batch.rows.token_BL[row, start : start + ANSWER_LENGTH]
        assert torch.equal(answer, batch.answer_QA[number])
        assert TOKENIZER.decode(answer[-1]) == END
        segment = batch.rows.segment_BL[row, start]
        first = int((batch.rows.segment_BL[row] == segment).nonzero()[0])
        # Every question continues the prefix: its first position is the same for all questions of the row.
        prefix = int((batch.rows.segment_BL[row] == 0).sum())
        assert torch.equal(batch.rows.position_3BL[:, row, first], batch.rows.position_3BL[:, row, prefix])
    assert (batch.rows.segment_BL == -1).sum() == (batch.rows.token_BL == TOKENIZER.pad_token_id).sum()


def test_pixels_equal_the_real_processor() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    settings = {
        key: value for key, value in PREPROCESSOR.items() if key.startswith(("do_", "image_m", "image_s"))
    }
    processor = Qwen2VLImageProcessor(**settings, size=PREPROCESSOR["size"])
    image = ask("test", 3, 0, 1).image
    theirs = processor(images=[image], return_tensors="pt")
    assert theirs["image_grid_thw"].tolist() == [[1, 8, 8]]
    ours = served_pixels(normalise([image]))
    torch.testing.assert_close(ours, theirs["pixel_values"], rtol=0, atol=1e-6)  # float32 rounding


@pytest.mark.parametrize("mode", ["RGB"])
def test_served_image_is_112_square(mode: str) -> None:
    image = served_image(np.zeros((128, 128, 3), dtype=np.uint8))
    assert isinstance(image, Image.Image) and image.mode == mode and image.size == (112, 112)
