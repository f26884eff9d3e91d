"""Pairs that a model has no room for are found before anything is asked or written."""

import dataclasses
from pathlib import Path

import pytest

from shared.config import apply_overrides
from shared.errors import DataError
from shared.types import Sample
from stage1_priors.cluster_jobs import plan_work
from stage1_priors.config import MllmConfig
from stage1_priors.dry_run import describe_plan
from stage1_priors.families.family import SizeRules
from stage1_priors.families.qwen2_5_vl import QWEN2_5_VL
from stage1_priors.preflight import TEXT_TOKENS, require_room
from stage1_priors.run import run_priors
from tests.stage1_priors.fake_engine import FakeEngine

RULES = SizeRules(
    factor=28, min_pixels=784, max_pixels=10**7, processor_min_pixels=784, processor_max_pixels=10**7
)


def sample(number, height, width):
    return Sample(
        sample_id=f"d.s.{number}",
        sent_id=number,
        ref_id=number,
        ann_id=number,
        image_id=number,
        split="train",
        expression="thing",
        file_name=f"{number}.jpg",
        height=height,
        width=width,
    )


def test_the_number_the_largest_and_the_settings_are_named():
    """A token is 28 x 28 pixels: 100, 400 and 900 of them beside 128 for the text and 96 for the answer."""
    samples = [sample(0, 280, 280), sample(1, 560, 560), sample(2, 840, 840), sample(3, 560, 560)]
    model = MllmConfig(path="x", max_model_len=900 + TEXT_TOKENS + 96)
    require_room(model, QWEN2_5_VL, RULES, samples)
    told = (
        r"^1 of 4 pairs need more tokens than model.max_model_len, 1123: d.s.2 \(2.jpg, 840 x 840\) up to 1124, 128 "
        r"of them for the text and model.max_tokens=96 .* model.max_pixels$"
    )
    with pytest.raises(DataError, match=told):
        require_room(dataclasses.replace(model, max_model_len=1123), QWEN2_5_VL, RULES, samples)
    with pytest.raises(DataError, match="^3 of 4 pairs"):
        require_room(dataclasses.replace(model, max_model_len=600), QWEN2_5_VL, RULES, samples)


def test_a_run_without_room_asks_and_writes_nothing(config):
    """112 x 112 pixels are 16 tokens: 240 are needed."""
    tight = apply_overrides(config, ["model.max_model_len=239"])
    engine, said = FakeEngine(), r"pairs need more tokens than model.max_model_len, 239: .* up to 240"
    with pytest.raises(DataError, match=said):
        run_priors(tight, engine_factory=engine.factory, quiet=True)
    assert engine.num_started == 0 and not list(Path(config.cache_root).glob("*.zarr"))
    plan = describe_plan(tight)
    assert "model.max_model_len, 239" in plan["problem"] and plan["pending_shards"] == 2
    with pytest.raises(DataError, match=said):
        plan_work(tight, ["embedded"], 1)
    enough = apply_overrides(config, ["model.max_model_len=240"])
    assert describe_plan(enough)["problem"] is None


def test_what_is_there_already_needs_no_room(config, monkeypatch):
    """A finished store, and rows that other stores hold; nor does Transformers, which knows no such limit."""
    monkeypatch.setattr("stage1_priors.preflight.TEXT_TOKENS", 10)
    tight = apply_overrides(config, ["model.max_model_len=200", "error_ceiling=1"])
    run_priors(tight, engine_factory=FakeEngine().factory, quiet=True)
    monkeypatch.undo()
    assert describe_plan(tight)["problem"] is None
    run_priors(tight, engine_factory=FakeEngine().factory, quiet=True)
    part = apply_overrides(tight, ["splits=val"])
    assert describe_plan(part)["problem"] is None
    run_priors(part, engine_factory=FakeEngine().factory, quiet=True)
    other = apply_overrides(tight, ["engine.kind=transformers"])
    run_priors(other, engine_factory=FakeEngine().factory, quiet=True)
