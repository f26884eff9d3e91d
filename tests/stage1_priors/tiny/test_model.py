"""The batched training pass equals Hugging Face's own forward; the block mask keeps expressions apart."""

import pytest
import torch

from shared.errors import DataError
from shared.synth.shapes import SHAPES
from stage1_priors.tiny.data import answer_box_px, ask, collate
from stage1_priors.tiny.model import (
    GRID,
    TinyModelConfig,
    block_mask,
    build_model,
    text_states,
    vision_features,
)
from stage1_priors.tiny.score import served_pixels
from stage1_priors.tiny.tokenizer import ANSWER_LENGTH, END, answer_text, build_tokenizer, prompt_text

TOKENIZER = build_tokenizer()
GRID_THW = torch.tensor([[1, GRID, GRID]])


@pytest.fixture(scope="module")
def model():
    return build_model(TinyModelConfig(num_vision_layers=2, num_text_layers=2), TOKENIZER, seed=3).eval()


def test_vision_features_equal_the_vision_tower(model) -> None:
    batch = collate([ask("test", 0, index, 1) for index in range(3)], TOKENIZER)
    with torch.no_grad():
        ours = vision_features(model, batch.pixel_B3HW)
        theirs = model.model.visual(served_pixels(batch.pixel_B3HW), GRID_THW.repeat(3, 1)).pooler_output
    torch.testing.assert_close(
        ours.flatten(0, 1), theirs, rtol=1e-4, atol=1e-4
    )  # float32, other order of sums


def test_shared_prefix_gives_the_logits_of_separate_prompts(model) -> None:
    scenes = [ask("test", 1, index, 3) for index in range(2)]
    batch = collate(scenes, TOKENIZER)
    question = 0
    with torch.no_grad():
        final = text_states(model, batch.rows, vision_features(model, batch.pixel_B3HW))[-1]
        for row, scene in enumerate(scenes):
            for asked in scene.questions:
                label = SHAPES[scene.attributes_K4[asked.target][0]]
                answer = answer_text(answer_box_px(scene.boxes_K4[asked.target]), label) + END
                text = prompt_text(asked.expression, 16) + answer
                ids = torch.tensor([TOKENIZER.encode(text, add_special_tokens=False)])
                theirs = model(
                    input_ids=ids,
                    pixel_values=served_pixels(batch.pixel_B3HW[row : row + 1]),
                    image_grid_thw=GRID_THW,
                    mm_token_type_ids=(ids == model.config.image_token_id).int(),
                ).logits[0, -ANSWER_LENGTH - 1 : -1]
                at_row, start = batch.answer_Q2[question].tolist()
                assert at_row == row
                ours = model.lm_head(final[row, start - 1 : start - 1 + ANSWER_LENGTH])
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # float32, other order of sums
                question += 1
    assert question == len(batch.answer_Q2) > 2


def test_block_mask_by_hand() -> None:
    # prefix, prefix, first, first, second, padding
    allowed = block_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0].int().tolist()
    assert allowed == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_same_seed_same_weights_and_the_global_generator_is_left_alone() -> None:
    config = TinyModelConfig(num_vision_layers=1, num_text_layers=1)
    before = torch.get_rng_state()
    first, second, other = (build_model(config, TOKENIZER, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("wrong", [{"hidden": 130}, {"num_heads": 3}, {"mrope_section": (4, 6, 7)}])
def test_sizes_that_do_not_fit_are_refused(wrong: dict) -> None:
    with pytest.raises(DataError):
        TinyModelConfig(**wrong)
