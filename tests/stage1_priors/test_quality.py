"""The prior's own score, against what is known of scripted answers."""

import numpy as np
import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.refer import load_refer
from stage1_priors.engine import Answer
from stage1_priors.quality import auroc, prior_mask, score_store
from stage1_priors.run import run_priors
from tests.stage1_priors.fake_engine import FakeEngine, box_answer


def oracle(config, miss=lambda sample: False):
    """An engine that knows the true boxes; `miss` picks samples whose answer is prose."""
    dataset = load_refer(config.data.root, config.data.dataset, config.data.split_by)
    answers = {}
    for sample in dataset.samples():
        key = (np.asarray(dataset.image(sample).resize((112, 112), 3)).tobytes(), sample.expression)
        box = tuple(int(value) for value in np.rint(dataset.box_xyxy_px(sample) * 112 / 128))
        answers[key] = Answer(text="Over there.", num_tokens=3) if miss(sample) else box_answer(box)
    return FakeEngine(lambda request: answers[np.asarray(request.image).tobytes(), request.expression])


def test_true_boxes_score_as_boxes_can(config):
    path = run_priors(config, engine_factory=oracle(config).factory, quiet=True)
    scores = score_store(path)
    assert list(scores) == ["train", "val", "testA", "testB"]
    for result in scores.values():
        assert result["box_acc@0.5"] > 0.97 and result["box_miou"] > 0.9
        assert 0.5 < result["oiou"] < 0.95 and result["status"] == {"ok": 1.0}
    assert score_store(path, "val") == {"val": scores["val"]}


def test_rows_without_a_box_count_as_empty_masks(config):
    whole = score_store(run_priors(config, engine_factory=oracle(config).factory, quiet=True), "val")["val"]
    other = apply_overrides(config, [f"cache_root={config.cache_root}-2", "answer_failure_ceiling=1"])
    engine = oracle(config, miss=lambda sample: sample.sent_id % 2 == 0)
    result = score_store(run_priors(other, engine_factory=engine.factory, quiet=True), "val")["val"]
    share = result["status"]["no_box"]
    assert 0.3 < share < 0.7
    assert result["box_acc@0.5"] == pytest.approx(whole["box_acc@0.5"] * (1 - share), abs=0.05)
    assert result["miou"] < whole["miou"] * 0.75


def test_foreign_data_and_unknown_splits_are_refused(config, tmp_path):
    from shared.synth.refshapes import write_refshapes

    path = run_priors(config, engine_factory=FakeEngine().factory, quiet=True)
    with pytest.raises(DataError, match="no split 'test'"):
        score_store(path, "test")
    write_refshapes(tmp_path / "foreign", num_train_images=4, seed=9, progress=False)
    with pytest.raises(DataError, match="other annotations"):
        score_store(path, root=str(tmp_path / "foreign"))


def test_prior_mask_is_resized_over_the_whole_image():
    proposal = np.zeros((4, 4), np.uint8)
    proposal[:2, 2:] = 255
    mask = prior_mask(proposal, (8, 16), True)
    want = np.zeros((8, 16), bool)
    want[:4, 8:] = True
    want[3, 8] = False  # both ramps meet here: 0.75 x 0.625
    np.testing.assert_array_equal(mask, want)
    assert not prior_mask(np.full((4, 4), 255, np.uint8), (8, 8), False).any()


def test_auroc_by_hand():
    score = np.array([0.9, 0.8, 0.7, 0.6, np.nan])
    assert auroc(score, np.array([True, True, False, False, True])) == 1.0
    assert auroc(score, np.array([False, True, True, False, True])) == 0.5
    assert auroc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert auroc(score, np.array([True] * 5)) is None


def test_the_first_pairs_are_scored_alone(config):
    config = apply_overrides(config, ["splits=val,train", "limit=20"])
    scores = score_store(run_priors(config, engine_factory=oracle(config).factory, quiet=True))
    assert scores["val"]["num"] == 20 and scores["train"] == {"num": 0}
