"""Image sizes, prompts and frames of Qwen2.5-VL."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DataError
from stage1_priors.families import FAMILIES, SizeRules, family_of, size_rules_of
from stage1_priors.families.family import box_to_norm, positive_integers
from stage1_priors.families.qwen2_5_vl import QWEN2_5_VL, processed_size, smart_resize
from tests.stage1_priors.fake_engine import write_model_folder


def rules(low, high):
    return SizeRules(
        factor=28, min_pixels=low, max_pixels=high, processor_min_pixels=low, processor_max_pixels=high
    )


REAL = rules(3136, 12845056)


@pytest.mark.parametrize(
    ("size", "limits", "want"),
    [
        ((480, 640), REAL, (476, 644)),
        ((128, 128), rules(12544, 12544), (112, 112)),
        ((480, 640), rules(12544, 12544), (112, 112)),  # the processor's own rule would oscillate here
        ((100, 1000), rules(12544, 12544), (28, 448)),
        ((10, 10), REAL, (56, 56)),
        ((3, 3000), REAL, (28, 5600)),
        ((30, 6000), REAL, (28, 5600)),  # 200:1 as it is, and more when rounded, which the processor refuses
        ((8200, 41), REAL, (11172, 56)),
    ],
)
def test_known_sizes(size, limits, want):
    assert processed_size(*size, limits) == want


def test_own_rule_agrees_with_the_library():
    library = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl").smart_resize
    for height, width in [
        (480, 640),
        (333, 500),
        (640, 427),
        (30, 900),
        (5000, 4000),
        (120, 115),
        (112, 112),
    ]:
        for low, high in ((3136, 12845056), (12544, 12544)):
            want = library(height, width, 28, low, high)
            assert smart_resize(height, width, 28, low, high) == want


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([(12544, 12544), (3136, 12845056), (3136, 200704), (50176, 60000)]),
)
def test_processed_sizes_are_never_resized_again(height, width, limits):
    low, high = limits
    size = processed_size(height, width, rules(low, high))
    assert size[0] % 28 == 0 and size[1] % 28 == 0
    assert low <= size[0] * size[1] <= high
    assert smart_resize(*size, 28, low, high) == size


def test_narrowed_limits_stay_fixed_points_of_the_processor():
    narrow = SizeRules(
        factor=28,
        min_pixels=3136,
        max_pixels=100_000,
        processor_min_pixels=3136,
        processor_max_pixels=12845056,
    )
    size = processed_size(480, 640, narrow)
    assert size[0] * size[1] <= 100_000 and smart_resize(*size, 28, 3136, 12845056) == size


def test_messages_put_the_image_first_and_keep_the_expression():
    system, user = QWEN2_5_VL.messages("{odd} one", "IMAGE")
    line = {"type": "text", "text": "You are a helpful assistant."}
    assert system == {"role": "system", "content": [line]}
    assert user["content"] == [
        {"type": "image", "image": "IMAGE"},
        {"type": "text", "text": "Output the bounding box of the {odd} one in the image."},
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_asked_in_other_words(name):
    family = FAMILIES[name]
    assert family.asking("", "") == family
    system, user = family.asking("Where is {expression}?", "Be {brief}.").messages("{odd} one", "IMAGE")
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be {brief}."}]}
    assert user["content"] == [
        {"type": "image", "image": "IMAGE"},
        {"type": "text", "text": "Where is {odd} one?"},
    ]


def test_box_to_norm_divides_by_the_frame():
    box = box_to_norm(np.array([[28, 14, 56, 56], [np.nan] * 4]), np.array([[56, 112], [56, 112]]))
    np.testing.assert_allclose(box[0], [0.25, 0.25, 0.5, 1.0])
    assert np.isnan(box[1]).all() and box.dtype == np.float32


def test_family_and_rules_from_a_folder(tmp_path):
    folder = write_model_folder(tmp_path / "model", min_pixels=3136, max_pixels=200704)
    assert family_of(folder) is QWEN2_5_VL
    found = size_rules_of(QWEN2_5_VL, folder, max_pixels=100_000)
    assert (found.factor, found.min_pixels, found.max_pixels) == (28, 3136, 100_000)
    assert (found.processor_min_pixels, found.processor_max_pixels) == (3136, 200704), (
        "as the engine has them"
    )
    with pytest.raises(DataError, match="not within the model's own"):
        size_rules_of(QWEN2_5_VL, folder, max_pixels=300_000)


def test_models_that_take_huge_images_keep_to_what_is_usual(tmp_path):
    """Of the published Qwen2.5-VL: up to 16,384 tokens an image; the settings lower and raise that."""
    folder = write_model_folder(tmp_path / "model", min_pixels=3136, max_pixels=12845056)
    assert size_rules_of(QWEN2_5_VL, folder).max_pixels == 1280 * 28 * 28
    assert size_rules_of(QWEN2_5_VL, folder, max_pixels=12845056).max_pixels == 12845056
    assert size_rules_of(QWEN2_5_VL, folder, min_pixels=2000000).max_pixels == 2000000


def test_sizes_may_come_as_edges_or_from_processor_config(tmp_path):
    folder = write_model_folder(tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    size = {"shortest_edge": 3136, "longest_edge": 6272}
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": {"size": size, "patch_size": 14, "merge_size": 2}})
    )
    found = size_rules_of(QWEN2_5_VL, folder)
    assert (found.min_pixels, found.max_pixels) == (3136, 6272)


def test_unknown_models_are_refused_by_name(tmp_path):
    folder = write_model_folder(tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(DataError, match=r"config\.json: model_type 'llava' has no family"):
        family_of(folder)
    (folder / "config.json").write_text("not json")
    with pytest.raises(DataError, match="config.json: cannot be read"):
        family_of(folder)
    for value in (0, -14, "14", True):
        with pytest.raises(DataError, match=f"patch_size is {value!r}, expected a positive integer"):
            positive_integers({"merge_size": 2, "patch_size": value}, "x")
    with pytest.raises(DataError, match="min_pixels is None"):
        write_model_folder(folder)
        (folder / "preprocessor_config.json").write_text('{"patch_size": 14, "merge_size": 2}')
        size_rules_of(QWEN2_5_VL, folder)
