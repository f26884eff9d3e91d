"""Write the embedded model as a Hugging Face folder that transformers and vLLM load unchanged and offline.

Beside the weights lie `training.json` (recipe and held-out score) and `README.md`, the same for readers.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from stage1_priors.tiny.data import PIXEL_MEAN, PIXEL_STD
from stage1_priors.tiny.model import MERGE, PATCH_PX
from stage1_priors.tiny.tokenizer import IMAGE_SIZE_PX

PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "image_mean": list(PIXEL_MEAN),
    "image_std": list(PIXEL_STD),
    "min_pixels": IMAGE_SIZE_PX**2,
    "max_pixels": IMAGE_SIZE_PX**2,
    "size": {"shortest_edge": IMAGE_SIZE_PX**2, "longest_edge": IMAGE_SIZE_PX**2},
    "patch_size": PATCH_PX,
    "temporal_patch_size": 2,
    "merge_size": MERGE,
}
"""Image processor settings: every square image becomes exactly 112 x 112."""


def export(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write `config.json`, bfloat16 weights, tokenizer with chat template, and the image processor's settings.

    Args:
        model: The trained model, left unchanged. The training-only heads are not part of it.
        tokenizer: From `build_tokenizer`.
        out: Folder to write; files of the same name are replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n", encoding="utf-8")


CARD = """# The embedded frozen prior

A Qwen2.5-VL ({class_name}) of {parameters:.2f} million parameters that answers
"Output the bounding box of the ... in the image." with a box in Qwen2.5-VL's own JSON format. It knows drawn scenes
of 128 x 128 pixels and nothing else; photographs and foreign words go through it without meaning. It lets the whole
pipeline run for real, on a CPU and without a download.

Made by `python -m stage1_priors.tiny.train`: {scenes:,} drawn scenes in {steps:,} steps, {minutes:.0f} minutes on
{machine}. Trained on boxes and attributes, never on masks; scenes come from other keys than RefShapes'. Weights are
stored as bfloat16 ({megabytes:.1f} MB) and meant to be served in float32.

Held-out score ({num} fresh scenes, greedy, Hugging Face `generate`, after rounding to bfloat16):

| accuracy at IoU 0.5 | mean IoU | parsed | {kinds} |
|---|---|---|{rules}
| {accuracy:.3f} | {mean_iou:.3f} | {parse_rate:.3f} | {values} |

It errs by taking the wrong object more often than by a loose box, as large models do on relational phrases.
`training.json` holds the recipe in full. License: that of the project.
"""


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write `training.json` and the model card.

    Args:
        out: The exported folder.
        record: `recipe`, `steps`, `scenes`, `training_minutes`, `machine`, `parameters` and `held_out`.
    """
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    score = record["held_out"]
    by_kind = score["accuracy_by_kind"]
    card = CARD.format(
        class_name="`Qwen2_5_VLForConditionalGeneration`",
        parameters=record["parameters"] / 1e6,
        scenes=record["scenes"],
        steps=record["steps"],
        minutes=record["training_minutes"],
        machine=record["machine"],
        megabytes=(out / "model.safetensors").stat().st_size / 1e6,
        num=score["num"],
        accuracy=score["accuracy"],
        mean_iou=score["mean_iou"],
        parse_rate=score["parse_rate"],
        kinds=" | ".join(by_kind),
        rules="---|" * len(by_kind),
        values=" | ".join(f"{value:.3f}" for value in by_kind.values()),
    )
    (out / "README.md").write_text(card, encoding="utf-8")
