"""Model families: how each one is asked for a box and in which coordinate frame it answers.

One file per family. The family of a model is read from `model_type` in its own `config.json`; a frame is never
guessed from how well boxes fit (boxes in a wrong frame can look plausible).

    family           numbers of an answer        sizes of the image the model sees
    Qwen2.5-VL       pixels of the resized image multiples of 28, aspect kept
    Qwen3-VL         0 to 1000                   multiples of 32, aspect kept
    InternVL3        0 to 1000                   a grid of 448 x 448 tiles of nearest aspect
    LLaVA-OneVision  0 to 1                      a square of 384 x 384 tiles

Each size is a fixed point of the model's own processor, which therefore cuts it into patches or tiles and does not
resize it again; the number of image tokens in every prompt is checked against it.
"""

import dataclasses
from pathlib import Path

from shared.errors import DataError
from shared.json_files import read_json
from stage1_priors.families.family import Family, SizeRules
from stage1_priors.families.internvl import INTERNVL
from stage1_priors.families.llava_onevision import LLAVA_ONEVISION
from stage1_priors.families.qwen2_5_vl import QWEN2_5_VL
from stage1_priors.families.qwen3_vl import QWEN3_VL

__all__ = [
    "FAMILIES",
    "INTERNVL",
    "LLAVA_ONEVISION",
    "QWEN2_5_VL",
    "QWEN3_VL",
    "Family",
    "SizeRules",
    "family_of",
    "image_token_id_of",
    "require_chat_template",
    "size_rules_of",
]

FAMILIES: dict[str, Family] = {
    "internvl": INTERNVL,
    "llava_onevision": LLAVA_ONEVISION,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl_moe": QWEN3_VL,
}
"""Family by `model_type`."""


def family_of(model_folder: Path) -> Family:
    """The family of the model in `model_folder`, by `model_type` of its `config.json`.

    Raises:
        DataError: No readable config, or a model type that no family here covers.
    """
    path = model_folder / "config.json"
    model_type = read_json(path).get("model_type")
    if model_type not in FAMILIES:
        raise DataError(
            f"{path}: model_type {model_type!r} has no family here (known: {', '.join(sorted(FAMILIES))})"
            + (
                "; repositories whose names end in -hf have the known kind"
                if model_type == "internvl_chat"
                else ""
            )
        )
    return FAMILIES[model_type]


def require_chat_template(model_folder: Path) -> None:
    """See that the model says how a question is put to it.

    Raises:
        DataError: It has no chat template in any of the places where Transformers and vLLM look for one.
    """
    if any((model_folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return
    for name in ("tokenizer_config.json", "processor_config.json"):
        file = model_folder / name
        if file.is_file() and read_json(file).get("chat_template"):
            return
    raise DataError(
        f"{model_folder}: the model has no chat template (chat_template.jinja, or one in tokenizer_config.json), which "
        "says how a question is put to it; place the one of its family there"
    )


def image_token_id_of(model_folder: Path) -> int:
    """Id of the token that stands for a piece of an image in a prompt, from `config.json`.

    Raises:
        DataError: The config names none.
    """
    path = model_folder / "config.json"
    config = read_json(path)
    value = config.get("image_token_id", config.get("image_token_index"))
    if not isinstance(value, int):
        raise DataError(f"{path}: image_token_id is {value!r}, expected the id of a token")
    return value


def size_rules_of(
    family: Family, model_folder: Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> SizeRules:
    """Image size rules from the model's own configuration files, narrowed by the two optional limits.

    Without limits, a family whose models take far larger images than anybody asks about keeps to its usual one.

    Args:
        family: The model's family.
        model_folder: Folder with `config.json` and `preprocessor_config.json` (or `processor_config.json`).
        min_pixels: Raises the model's own lower limit, pixels.
        max_pixels: Lowers the model's own upper limit, pixels.

    Raises:
        DataError: No usable configuration, or limits outside the model's own range: the engine's image processor
            would resize such an image again and the frame of the answer would be unknown.
    """
    config = read_json(model_folder / "config.json")
    preprocessor_path = model_folder / "preprocessor_config.json"
    if preprocessor_path.exists():
        preprocessor = read_json(preprocessor_path)
    else:
        preprocessor_path = model_folder / "processor_config.json"
        preprocessor = read_json(preprocessor_path).get("image_processor") or {}
    rules = family.size_rules(config, preprocessor, str(preprocessor_path))
    low = rules.min_pixels if min_pixels is None else min_pixels
    high = max_pixels
    if high is None:
        high = min(rules.max_pixels, max(low, family.usual_max_pixels or rules.max_pixels))
    if not rules.min_pixels <= low <= high <= rules.max_pixels:
        raise DataError(
            f"model.min_pixels..max_pixels = {low}..{high} is not within the model's own "
            f"{rules.min_pixels}..{rules.max_pixels} ({preprocessor_path})"
        )
    return dataclasses.replace(rules, min_pixels=low, max_pixels=high)
