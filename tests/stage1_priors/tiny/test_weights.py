"""The committed model: small, whole, without the training-only heads, and as good as its record says."""

import json

import pytest
import torch
from safetensors import safe_open

from stage1_priors.families import QWEN2_5_VL
from stage1_priors.tiny import WEIGHTS_DIR
from stage1_priors.tiny.model import TinyModelConfig, build_model
from stage1_priors.tiny.score import held_out_score
from stage1_priors.tiny.tokenizer import build_tokenizer, prompt_text

MAX_BYTES = 10_000_000


def test_weights_are_small_and_hold_the_model_alone() -> None:
    path = WEIGHTS_DIR / "model.safetensors"
    assert path.stat().st_size <= MAX_BYTES
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    expected = set(build_model(TinyModelConfig(), build_tokenizer(), seed=0).state_dict())
    # "model.visual." is "visual." on disk; the output matrix is tied to the embedding and not stored.
    tails = {
        name.removeprefix("model.").removeprefix("language_model.") for name in expected - {"lm_head.weight"}
    }
    assert {name.removeprefix("model.").removeprefix("language_model.") for name in names} == tails


def test_record_is_within_the_wanted_range() -> None:
    record = json.loads((WEIGHTS_DIR / "training.json").read_text(encoding="utf-8"))
    assert record["held_out"]["num"] >= 1000
    assert 0.6 <= record["held_out"]["accuracy"] <= 0.9
    assert record["held_out"]["parse_rate"] >= 0.99


@pytest.fixture(scope="module")
def committed():
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS_DIR, local_files_only=True)
    load = Qwen2_5_VLForConditionalGeneration.from_pretrained
    return load(WEIGHTS_DIR, dtype=torch.float32, local_files_only=True).eval(), tokenizer


def test_committed_tokenizer_is_the_built_one(committed) -> None:
    built, loaded = build_tokenizer(), committed[1]
    assert loaded.get_vocab() == built.get_vocab()
    text = prompt_text("left red star", 16)
    assert loaded.encode(text, add_special_tokens=False) == built.encode(text, add_special_tokens=False)
    assert (loaded.eos_token, loaded.pad_token, loaded.padding_side) == (
        "<|im_end|>",
        "<|endoftext|>",
        "left",
    )


def test_processor_loads_offline_and_gives_the_training_prompt(committed) -> None:
    from transformers import AutoProcessor

    from stage1_priors.tiny.data import ask

    processor = AutoProcessor.from_pretrained(WEIGHTS_DIR, local_files_only=True)
    text = processor.apply_chat_template(
        QWEN2_5_VL.messages("left red star", None), tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=[text], images=[ask("test", 0, 0, 1).image], return_tensors="pt")
    expected = committed[1].encode(prompt_text("left red star", 16), add_special_tokens=False)
    assert inputs["input_ids"][0].tolist() == expected


@pytest.mark.slow
def test_held_out_accuracy(committed) -> None:
    score = held_out_score(*committed, num=64)
    assert 0.55 <= score.accuracy <= 0.95
    assert score.parse_rate >= 0.95
