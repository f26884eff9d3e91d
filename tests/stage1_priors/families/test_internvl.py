"""Tile grids, prompt and frame of InternVL3."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DataError
from stage1_priors.families import INTERNVL, SizeRules, family_of, size_rules_of
from stage1_priors.families.internvl import num_image_tokens, processed_size
from stage1_priors.recipes import RECIPES
from tests.stage1_priors.fake_engine import write_model_folder

PREPROCESSOR = {"size": {"height": 448, "width": 448}, "min_patches": 1, "max_patches": 12}
CONFIG = {"model_type": "internvl", "image_seq_length": 256, "image_token_id": 9}


def rules(most, least=1):
    return SizeRules(
        factor=448,
        min_pixels=least * 448**2,
        max_pixels=most * 448**2,
        processor_min_pixels=448**2,
        processor_max_pixels=12 * 448**2,
        cell_tokens=256,
    )


@pytest.fixture
def folder(tmp_path):
    folder = write_model_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((480, 640), 12, (3, 4)),
        ((448, 448), 12, (1, 1)),
        ((640, 640), 12, (2, 2)),  # more than half the area of two by two tiles
        ((480, 640), 1, (1, 1)),
        ((480, 640), 4, (1, 1)),  # 4:3 is nearer to 1 than to 2
        ((100, 1000), 12, (1, 10)),
        ((1000, 100), 6, (6, 1)),
    ],
)
def test_known_grids(size, most, grid):
    assert processed_size(*size, rules(most)) == (grid[0] * 448, grid[1] * 448)


def test_several_tiles_take_one_more_for_the_whole_image():
    assert num_image_tokens((448, 448), rules(12)) == 256
    assert num_image_tokens((448, 896), rules(12)) == 3 * 256


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 12))
def test_grids_are_the_librarys_and_stay(height, width, most):
    """The library's own choice under the same limit, and its choice again, under its own limit, for that grid."""
    library = pytest.importorskip("transformers.models.got_ocr2.image_processing_got_ocr2")
    found = processed_size(height, width, rules(most))
    columns, rows = library.get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
    assert found == (rows * 448, columns * 448)
    assert library.get_optimal_tiled_canvas(found, (448, 448), 1, 12) == (columns, rows)


def test_rules_from_a_folder(folder):
    assert family_of(folder) is INTERNVL
    found = size_rules_of(INTERNVL, folder, max_pixels=448**2)
    assert (found.factor, found.cell_tokens, found.processor_max_pixels) == (448, 256, 12 * 448**2)
    assert INTERNVL.processed_size(480, 640, found) == (448, 448)


@pytest.mark.parametrize(
    ("size", "want"), [((480, 640), (1344, 1792)), ((640, 480), (1792, 1344)), ((427, 640), (896, 1344))]
)
def test_the_recipe_for_real_data_leaves_all_tiles(folder, size, want):
    """Its limits were meant for Qwen2.5-VL once, and left a photo a single stretched tile."""
    model = RECIPES["refcoco-qwen2.5-vl-7b"]().model
    found = size_rules_of(INTERNVL, folder, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
    size_hw = INTERNVL.processed_size(*size, found)
    assert size_hw == want
    assert num_image_tokens(size_hw, found) + 128 + model.max_tokens <= model.max_model_len


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"height": 448, "width": 224}}, "tiles of 448x224 are not square"),
        ({"max_patches": None}, r"preprocessor_config\.json: max_patches is None"),
        ({"min_patches": True}, "min_patches is True"),
        ({"size": None}, "size.height is None"),
    ],
)
def test_unusable_settings_are_named(folder, change, message):
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | change))
    with pytest.raises(DataError, match=message):
        size_rules_of(INTERNVL, folder)


def test_a_model_without_a_number_of_tokens_is_named(folder):
    (folder / "config.json").write_text('{"model_type": "internvl"}')
    with pytest.raises(DataError, match=r"/config\.json: image_seq_length is None"):
        size_rules_of(INTERNVL, folder)


def test_limits_between_two_grids_are_refused():
    narrow = SizeRules(
        factor=448,
        min_pixels=448**2 + 1,
        max_pixels=448**2 + 2,
        processor_min_pixels=448**2,
        processor_max_pixels=12 * 448**2,
    )
    with pytest.raises(DataError, match="no grid of 448 x 448 tiles has 200705..200706 pixels"):
        processed_size(480, 640, narrow)


def test_frame_and_messages():
    assert INTERNVL.answer_frame_hw((448, 896)) == (1000, 1000)
    (user,) = INTERNVL.messages("{odd} one", "IMAGE")
    assert user["content"][0] == {"type": "image", "image": "IMAGE"}
    assert user["content"][1]["text"].endswith("this sentence describes: <ref>{odd} one</ref>")
