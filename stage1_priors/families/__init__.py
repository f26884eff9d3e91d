"""Model families: how each one is asked for a box and in which coordinate frame it answers.

One file per family. The family of a model is read from `model_type` in its own `config.json`; a frame is never
guessed from how well boxes fit (boxes in a wrong frame can look plausible).
"""

import json
from pathlib import Path

from shared.errors import DataError
from stage1_priors.families.family import Family, SizeRules
from stage1_priors.families.qwen2_5_vl import QWEN2_5_VL

__all__ = ["FAMILIES", "QWEN2_5_VL", "Family", "SizeRules", "family_of", "read_json", "size_rules_of"]

FAMILIES: dict[str, Family] = {"qwen2_5_vl": QWEN2_5_VL}
"""Family by `model_type`."""


def read_json(path: Path) -> dict:
    """The JSON object in `path`.

    Raises:
        DataError: The file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


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
        )
    return FAMILIES[model_type]


def size_rules_of(
    family: Family, model_folder: Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> SizeRules:
    """Image size rules from the model's own configuration files, narrowed by the two optional limits.

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
    high = rules.max_pixels if max_pixels is None else max_pixels
    if not rules.min_pixels <= low <= high <= rules.max_pixels:
        raise DataError(
            f"model.min_pixels..max_pixels = {low}..{high} is not within the model's own "
            f"{rules.min_pixels}..{rules.max_pixels} ({preprocessor_path})"
        )
    return SizeRules(
        factor=rules.factor,
        min_pixels=low,
        max_pixels=high,
        processor_min_pixels=rules.processor_min_pixels,
        processor_max_pixels=rules.processor_max_pixels,
    )
