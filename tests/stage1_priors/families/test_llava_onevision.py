"""Squares, prompt and frame of LLaVA-OneVision."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DataError
from stage1_priors.families import LLAVA_ONEVISION, SizeRules, family_of, image_token_id_of, size_rules_of
from stage1_priors.families.llava_onevision import num_image_tokens, processed_size
from tests.stage1_priors.fake_engine import write_model_folder

PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
PREPROCESSOR = {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": PINPOINTS}
CONFIG = {
    "model_type": "llava_onevision",
    "image_token_index": 151646,
    "vision_aspect_ratio": "anyres_max_9",
    "vision_config": {"image_size": 384, "patch_size": 14},
}


def rules(most):
    return SizeRules(
        factor=384,
        min_pixels=384**2,
        max_pixels=(most * 384) ** 2,
        processor_min_pixels=384**2,
        processor_max_pixels=(6 * 384) ** 2,
        cell_tokens=729,
        pooled_above=9,
    )


@pytest.fixture
def folder(tmp_path):
    folder = write_model_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


@pytest.mark.parametrize(
    ("size", "most", "side"),
    [((384, 384), 6, 1), ((480, 640), 6, 2), ((480, 640), 1, 1), ((100, 1000), 6, 1), ((5000, 4000), 6, 6)],
)
def test_known_squares(size, most, side):
    assert processed_size(*size, rules(most)) == (side * 384, side * 384)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 6))
def test_squares_are_neither_resized_nor_padded(height, width, most):
    library = pytest.importorskip("transformers.image_processing_utils")
    found = processed_size(height, width, rules(most))
    assert found in [tuple(pair) for pair in PINPOINTS]
    assert tuple(library.select_best_resolution(found, PINPOINTS)) == found


def test_tokens_are_those_of_the_library():
    transformers = pytest.importorskip("transformers")
    from tests.stage1_priors.families.random_models import LLAVA, build_tokenizer

    tokenizer = build_tokenizer(LLAVA, "", image_token="<image>", video_token="<video>")
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
    )
    sides = [384 * tiles for tiles in range(1, 7)]
    want = processor._get_num_multimodal_tokens([[side, side] for side in sides]).num_image_tokens
    assert [num_image_tokens((side, side), rules(6)) for side in sides] == want


@pytest.mark.parametrize(("tiles", "side"), [(3, 81), (4, 76)])
def test_tokens_are_pooled_where_they_are_a_tenth_too_many(tiles, side):
    """The library pools 16 tiles to 8 tiles' worth of tokens, and lets 9 be: its side is 1.06 times the allowed one."""
    few = dataclasses.replace(rules(6), pooled_above=8)
    assert num_image_tokens((384 * tiles, 384 * tiles), few) == 729 + side * side + side


def test_rules_from_a_folder(folder):
    assert family_of(folder) is LLAVA_ONEVISION and image_token_id_of(folder) == 151646
    found = size_rules_of(LLAVA_ONEVISION, folder, max_pixels=384**2)
    assert (found.factor, found.cell_tokens, found.pooled_above) == (384, 729, 9)
    assert LLAVA_ONEVISION.processed_size(480, 640, found) == (384, 384)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"vision_feature_select_strategy": "default"}, "'default' .* is not supported"),
        ("config.json", {"vision_config": {}}, r"/config\.json: vision_config.image_size is None"),
        ("config.json", {"vision_aspect_ratio": "pad"}, "vision_aspect_ratio 'pad' is not supported"),
        (
            "config.json",
            {"vision_config": {"image_size": 336, "patch_size": 14}},
            "tiles are 336 pixels wide",
        ),
        ("preprocessor_config.json", {"image_grid_pinpoints": [[384, 768]]}, r"squares \[\] of"),
        ("preprocessor_config.json", {"image_grid_pinpoints": [[384, 384], [1152, 1152]]}, "not consecutive"),
        ("preprocessor_config.json", {"image_grid_pinpoints": None}, "is None, expected a list"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 384}}, "size.height is None"),
    ],
)
def test_unusable_settings_are_named(folder, file, change, message):
    before = CONFIG if file == "config.json" else PREPROCESSOR
    (folder / file).write_text(json.dumps(before | change))
    with pytest.raises(DataError, match=message):
        size_rules_of(LLAVA_ONEVISION, folder)


def test_a_model_without_an_image_token_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "llava_onevision"}')
    with pytest.raises(DataError, match=r"config\.json: image_token_id is None"):
        image_token_id_of(folder)


def test_limits_between_two_squares_are_refused():
    narrow = SizeRules(
        factor=384,
        min_pixels=384**2 + 1,
        max_pixels=384**2 + 2,
        processor_min_pixels=384**2,
        processor_max_pixels=(6 * 384) ** 2,
    )
    with pytest.raises(DataError, match="no square of 384 x 384 tiles has 147457..147458 pixels"):
        processed_size(480, 640, narrow)


def test_frame_and_messages():
    assert LLAVA_ONEVISION.answer_frame_hw((384, 384)) == (1, 1)
    (user,) = LLAVA_ONEVISION.messages("{odd} one", "IMAGE")
    assert user["content"][0] == {"type": "image", "image": "IMAGE"}
    assert user["content"][1]["text"].endswith("this sentence describes: {odd} one")
