"""Sampled boxes: their agreement by hand, their columns in the store, and the noise that draws them."""

import dataclasses

import numpy as np
import pytest
import torch

from shared.config import apply_overrides
from shared.errors import DataError
from shared.store.reader import PriorStore
from shared.store.schema import sample_fields
from stage1_priors.config import MllmConfig
from stage1_priors.engine import Answer
from stage1_priors.families import LLAVA_ONEVISION, QWEN2_5_VL
from stage1_priors.quality import score_store
from stage1_priors.run import run_priors
from stage1_priors.sampled_boxes import mean_pairwise_iou, read_samples
from stage1_priors.transformers_engine import keyed_noise
from tests.stage1_priors.fake_engine import FakeEngine, random_box_answer

BOX = (0.0, 0.0, 0.5, 0.5)
HALF = (0.0, 0.0, 0.5, 0.25)
NONE = (np.nan,) * 4


@pytest.mark.parametrize(
    ("boxes", "want"),
    [
        ([BOX, BOX, BOX], 1.0),
        ([BOX, HALF], 0.5),
        ([BOX, BOX, HALF], (1 + 0.5 + 0.5) / 3),
        ([BOX, BOX, NONE], 1 / 3),
        ([NONE, NONE], 0.0),
    ],
)
def test_mean_pairwise_iou_by_hand(boxes, want):
    assert mean_pairwise_iou(np.array(boxes)) == pytest.approx(want)


def test_columns_of_a_batch():
    asked = Answer(
        text="", samples=(("[0, 0, 56, 56]", "stop"), ("nothing", "stop"), ("[0, 0, 56, 5", "length"))
    )
    columns = read_samples(
        [asked, None, Answer(text="", error="x")], np.full((3, 2), 112), QWEN2_5_VL, 3, 0.02
    )
    np.testing.assert_allclose(columns["sample_box_xyxy_norm"][0], [BOX, NONE, NONE])
    assert np.isnan(columns["sample_box_xyxy_norm"][1:]).all()
    np.testing.assert_array_equal(columns["sample_iou"], [0.0, np.nan, np.nan])
    assert {name: column.dtype for name, column in columns.items()} == {
        spec.name: spec.numpy_dtype for spec in sample_fields(3)
    }


def test_columns_are_in_the_familys_frame():
    asked = Answer(text="", samples=(("[0.0, 0.0, 0.5, 0.5]", "stop"), ("[0.0, 0.0, 0.5, 0.25]", "stop")))
    columns = read_samples([asked], np.full((1, 2), 384), LLAVA_ONEVISION, 2, 0.02)
    np.testing.assert_allclose(columns["sample_box_xyxy_norm"][0], [BOX, HALF])
    assert columns["sample_iou"][0] == pytest.approx(0.5)


def test_a_sample_is_read_as_the_answer_is():
    """Pixels of a wide image are shares of their own side, and what loops to the limit says nothing."""
    box = '{"bbox_2d": [56, 28, 168, 84]}, '
    asked = Answer(text="", samples=((box, "stop"), (box * 9, "length")))
    columns = read_samples([asked], np.array([[112, 224]]), QWEN2_5_VL, 2, 0.02)
    np.testing.assert_allclose(columns["sample_box_xyxy_norm"][0], [(0.25, 0.25, 0.75, 0.75), NONE])


def test_nothing_is_kept_unless_asked_for():
    assert read_samples([Answer(text="")], np.full((1, 2), 112), QWEN2_5_VL, 0, 0.02) == {}
    assert sample_fields(0) == ()


def sampling(num_samples):
    """An engine whose samples repeat the answer where the seed is even, and say nothing where it is odd."""

    def answer_of(request):
        answer = random_box_answer(request)
        text = answer.text if request.seed % 2 == 0 else "nothing"
        return dataclasses.replace(answer, samples=((text, "stop"),) * num_samples)

    return FakeEngine(answer_of)


def test_the_store_holds_them_and_the_score_ranks_by_them(config):
    sampled = apply_overrides(config, ["model.num_samples=3", "splits=val"])
    path = run_priors(sampled, engine_factory=sampling(3).factory, quiet=True)
    store = PriorStore(path)
    boxes, agreement = store.column("sample_box_xyxy_norm"), store.column("sample_iou")
    assert boxes.shape == (store.num_rows, 3, 4) and set(agreement.tolist()) == {0.0, 1.0}
    greedy = store.column("box_xyxy_norm")[agreement == 1]
    np.testing.assert_array_equal(boxes[agreement == 1], np.repeat(greedy[:, None], 3, 1))
    assert 0 <= score_store(path, "val")["val"]["sample_auroc"] <= 1


def test_a_store_without_samples_has_no_such_fields(config):
    path = run_priors(
        apply_overrides(config, ["splits=val"]), engine_factory=FakeEngine().factory, quiet=True
    )
    assert not {"sample_box_xyxy_norm", "sample_iou"} & set(PriorStore(path).fields)
    assert "sample_auroc" not in score_store(path, "val")["val"]


@pytest.mark.parametrize("change", [{"num_samples": 1}, {"num_samples": -2}, {"sample_temperature": 0.0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(DataError, match=next(iter(change))):
        MllmConfig(path="x", **change)


def test_keyed_noise_draws_from_the_softmax_at_the_temperature():
    logit_BV = torch.tensor([[0.0, 1.0, -1.0]]).expand(4000, 3)
    drawn_B = keyed_noise(range(4000), 0.5)(None, logit_BV).argmax(1)
    share_V = torch.bincount(drawn_B, minlength=3) / 4000
    # 4000 draws: three standard deviations of a share are below 0.024
    torch.testing.assert_close(share_V, torch.softmax(logit_BV[0] / 0.5, 0), atol=0.024, rtol=0)


def test_keyed_noise_of_a_row_does_not_depend_on_the_batch():
    logit_BV = torch.linspace(-1, 1, 12).view(3, 4)
    together, alone = keyed_noise([5, 6, 7], 1.0), keyed_noise([6], 1.0)
    for _ in range(3):
        torch.testing.assert_close(together(None, logit_BV)[1:2], alone(None, logit_BV[1:2]), atol=0, rtol=0)
