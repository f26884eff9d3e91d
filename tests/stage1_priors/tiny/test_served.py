"""The committed model under a real vLLM engine: float32 greedy text equals Hugging Face's."""

import importlib.util
import os

import pytest
import torch

from stage1_priors.families import QWEN2_5_VL
from stage1_priors.tiny import WEIGHTS_DIR
from stage1_priors.tiny.data import ask
from stage1_priors.tiny.score import HELD_OUT, answers

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}
NUM_SCENES = 20


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.filterwarnings("default")
def test_vllm_greedy_text_equals_hugging_face() -> None:
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    os.environ.update(SETTINGS)
    scenes = [ask(HELD_OUT, 0, index, 1) for index in range(NUM_SCENES)]
    images, texts = [s.image for s in scenes], [s.questions[0].expression for s in scenes]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(WEIGHTS_DIR, dtype=torch.float32).eval()
    expected = answers(model, AutoTokenizer.from_pretrained(WEIGHTS_DIR), images, texts)

    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(WEIGHTS_DIR),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        limit_mm_per_prompt={"image": 1, "video": 0},
        skip_mm_profiling=True,
        seed=0,
    )
    chats = [QWEN2_5_VL.messages(text, image) for text, image in zip(texts, images, strict=True)]
    for chat in chats:
        part = chat[1]["content"][0]
        chat[1]["content"][0] = {"type": "image_pil", "image_pil": part["image"]}
    served = engine.chat(chats, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    assert [answer.outputs[0].text for answer in served] == expected
    assert len(set(expected)) > NUM_SCENES // 2
