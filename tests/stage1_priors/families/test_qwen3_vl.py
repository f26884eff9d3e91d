"""Sizes, prompt and frame of Qwen3-VL."""

import json

import pytest

from stage1_priors.families import QWEN3_VL, family_of, size_rules_of
from tests.stage1_priors.fake_engine import write_model_folder


@pytest.fixture
def folder(tmp_path):
    """Limits as the published models state them."""
    folder = write_model_folder(tmp_path / "model")
    config = {"model_type": "qwen3_vl", "vision_config": {"patch_size": 16, "spatial_merge_size": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    size = {"shortest_edge": 65536, "longest_edge": 16777216}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": size, "patch_size": 16, "merge_size": 2})
    )
    return folder


@pytest.mark.parametrize(
    ("size", "want", "tokens"),
    [((480, 640), (480, 640), 300), ((333, 500), (320, 512), 160), ((8, 8), (256, 256), 64)],
)
def test_sizes_are_multiples_of_32(folder, size, want, tokens):
    assert family_of(folder) is QWEN3_VL
    rules = size_rules_of(QWEN3_VL, folder)
    assert rules.factor == 32
    found = QWEN3_VL.processed_size(*size, rules)
    assert found == want and QWEN3_VL.num_image_tokens(found, rules) == tokens


def test_sizes_are_fixed_points_of_the_library(folder):
    library = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl").smart_resize
    rules = size_rules_of(QWEN3_VL, folder, max_pixels=300_000)
    for size in [(480, 640), (333, 500), (30, 900), (5000, 4000)]:
        found = QWEN3_VL.processed_size(*size, rules)
        assert found[0] * found[1] <= 300_000
        assert library(*found, 32, 65536, 16777216) == found


def test_the_mixture_of_experts_is_the_same_family(folder):
    (folder / "config.json").write_text('{"model_type": "qwen3_vl_moe"}')
    assert family_of(folder) is QWEN3_VL


def test_frame_and_messages():
    assert QWEN3_VL.answer_frame_hw((480, 640)) == (1000, 1000)
    (user,) = QWEN3_VL.messages("{odd} one", "IMAGE")
    assert user["content"] == [
        {"type": "image", "image": "IMAGE"},
        {
            "type": "text",
            "text": "Locate the {odd} one in the image and output its bbox coordinates in JSON format.",
        },
    ]
