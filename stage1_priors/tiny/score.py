"""The held-out score of the embedded model: greedy answers of Hugging Face's own `generate`, parsed as JSON.

Accuracy at IoU 0.5 and mean IoU over scenes that neither training nor RefShapes draws; an answer that does not parse
counts as IoU 0.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from stage1_priors.tiny.data import AskedScene, ask, normalise
from stage1_priors.tiny.model import GRID, NUM_IMAGE_TOKENS, patchify
from stage1_priors.tiny.tokenizer import ANSWER_LENGTH, prompt_text

HELD_OUT = "mllm-heldout"
"""Stream of the held-out scenes."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A held-out score; every share is in [0, 1]."""

    num: int
    """Scenes, one question each."""
    accuracy: float
    """Share of answers with IoU of at least 0.5."""
    mean_iou: float
    """Mean IoU of the boxes."""
    parse_rate: float
    """Share of answers that are valid JSON with one box."""
    accuracy_by_kind: dict[str, float] = field(default_factory=dict)
    """Accuracy for each kind of expression."""
    num_by_kind: dict[str, int] = field(default_factory=dict)
    """Questions of each kind."""


def parse_box(text: str) -> np.ndarray | None:
    """The box of a strictly valid answer, float64 [4] px, or None."""
    try:
        found = json.loads(text)
        box = np.array(found[0]["bbox_2d"], dtype=np.float64)
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return box if len(found) == 1 and box.shape == (4,) else None


def box_iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray) -> float:
    """IoU of two boxes in one frame; 0 where either has no area."""
    low, high = np.maximum(first_xyxy[:2], second_xyxy[:2]), np.minimum(first_xyxy[2:], second_xyxy[2:])
    inter = float(np.prod(np.clip(high - low, 0, None)))
    areas = [float(np.prod(np.clip(box[2:] - box[:2], 0, None))) for box in (first_xyxy, second_xyxy)]
    union = sum(areas) - inter
    return inter / union if union > 0 else 0.0


def served_pixels(pixel_B3HW: torch.Tensor) -> torch.Tensor:
    """`pixel_values` in the layout of Qwen2.5-VL's processor: float [B * 64, 1176], the image repeated in time."""
    patch = patchify(pixel_B3HW)
    channels = patch.view(*patch.shape[:2], 3, 1, -1).expand(-1, -1, -1, 2, -1)
    return channels.reshape(-1, 2 * patch.shape[-1])


@torch.no_grad()
def answers(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    images: Sequence,
    expressions: Sequence[str],
    batch_size: int = 64,
) -> list[str]:
    """Greedy answers to one expression per image (PIL RGB, 112 x 112), without special tokens."""
    texts: list[str] = []
    for start in range(0, len(images), batch_size):
        chosen = slice(start, start + batch_size)
        prompts = [prompt_text(expression, NUM_IMAGE_TOKENS) for expression in expressions[chosen]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        generated = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            mm_token_type_ids=(inputs["input_ids"] == model.config.image_token_id).int(),
            pixel_values=served_pixels(normalise(list(images[chosen]))),
            image_grid_thw=torch.tensor([[1, GRID, GRID]] * len(prompts)),
            max_new_tokens=ANSWER_LENGTH + 4,
            do_sample=False,
        )
        texts += tokenizer.batch_decode(
            generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return texts


def held_out_score(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, num: int, seed: int = 0
) -> Score:
    """Score the model on the first `num` held-out scenes."""
    scenes = [ask(HELD_OUT, seed, index, 1) for index in range(num)]
    training = model.training
    model.eval()
    texts = answers(model, tokenizer, [s.image for s in scenes], [s.questions[0].expression for s in scenes])
    model.train(training)
    return summarise(scenes, texts)


def summarise(scenes: Sequence[AskedScene], texts: Sequence[str]) -> Score:
    """Compare answers with the boxes of the objects meant."""
    ious, parsed = [], 0
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for scene, text in zip(scenes, texts, strict=True):
        question, box = scene.questions[0], parse_box(text)
        parsed += box is not None
        ious.append(0.0 if box is None else box_iou(box, scene.boxes_K4[question.target].astype(np.float64)))
        by_kind[question.kind].append(ious[-1] >= 0.5)
    return Score(
        num=len(ious),
        accuracy=float(np.mean([iou >= 0.5 for iou in ious])),
        mean_iou=float(np.mean(ious)),
        parse_rate=parsed / len(ious),
        accuracy_by_kind={kind: round(float(np.mean(right)), 4) for kind, right in sorted(by_kind.items())},
        num_by_kind={kind: len(right) for kind, right in sorted(by_kind.items())},
    )
