"""Write the embedded mask proposer as a Hugging Face folder that `Sam2Model` and `Sam2Processor` load offline.

Beside the weights lie `training.json` (recipe and held-out score) and `README.md`, the same for readers.
"""

import json
from pathlib import Path
from typing import Any

from transformers import Sam2Model, Sam2Processor


def export(model: Sam2Model, processor: Sam2Processor, out: Path) -> None:
    """Write `config.json`, float32 weights and the processor's settings; files of the same name are replaced."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)


CARD = """# The embedded mask proposer

A Sam2Model (`Sam2Model`) of {parameters:.2f} million parameters that turns a box on a drawn scene of 128 x 128 pixels
into a mask of 32 x 32. Photographs go through it without meaning. With it the embedded pipeline is that of real
data (answer, box, mask) on a CPU and without a download.

Made by `python -m stage1_priors.tiny_sam.train`: {boxes:,} boxes on {scenes:,} drawn scenes in {steps:,} steps,
{minutes:.0f} minutes on {machine}. Half of the boxes were tight, half jittered as an imperfect model's
would be. Scenes come from other keys than RefShapes'. Weights are stored as float32 ({megabytes:.1f} MB).

Mean IoU with the true masks ({num} boxes of fresh scenes each, single-mask output, at 128 x 128):

| | the mask | the box itself, filled |
|---|---|---|
| tight boxes | {tight:.3f} | {tight_box:.3f} |
| jittered boxes | {jittered:.3f} | {jittered_box:.3f} |

Mean absolute error of the predicted IoU: {predicted_error:.3f}. `training.json` holds the recipe in full. License: that
of the project.
"""


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write `training.json` and the model card.

    Args:
        out: The exported folder.
        record: `recipe`, `steps`, `scenes`, `boxes`, `training_minutes`, `machine`, `parameters` and `held_out`.
    """
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    card = CARD.format(
        parameters=record["parameters"] / 1e6,
        boxes=record["boxes"],
        scenes=record["scenes"],
        steps=record["steps"],
        minutes=record["training_minutes"],
        machine=record["machine"],
        megabytes=(out / "model.safetensors").stat().st_size / 1e6,
        **record["held_out"],
    )
    (out / "README.md").write_text(card, encoding="utf-8")
