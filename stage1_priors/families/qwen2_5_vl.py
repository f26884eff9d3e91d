"""Qwen2.5-VL: absolute pixels of the *resized* image, answers as JSON text.

The resize happens here, before any engine, so that the frame of the answer is known. The rule is that of the
model's own processor (both sides multiples of 28, area between two limits, aspect kept as closely as possible).
That rule is not idempotent near its limits: a size it returns may be resized again when the processor sees it. Sizes
chosen here are always fixed points of the processor's rule, so no engine resizes a second time.
"""

import math
from typing import Any

from shared.errors import DataError
from stage1_priors.families.family import PIXELS, Family, SizeRules, positive_integers

SYSTEM = "You are a helpful assistant."
QUESTION = "Output the bounding box of the {expression} in the image."
MAX_ASPECT = 200
"""The processor refuses images more elongated than this."""


def size_rules(config: dict, preprocessor: dict, where: str) -> SizeRules:
    """Size rules from `config.json` and the image processor's configuration.

    Raises:
        DataError: A limit or patch size is missing or not a positive integer.
    """
    vision = config.get("vision_config") or {}
    size = preprocessor.get("size") or {}
    numbers = {
        "patch_size": preprocessor.get("patch_size", vision.get("patch_size")),
        "merge_size": preprocessor.get("merge_size", vision.get("spatial_merge_size")),
        "min_pixels": _first(
            preprocessor.get("min_pixels"), size.get("shortest_edge"), size.get("min_pixels")
        ),
        "max_pixels": _first(
            preprocessor.get("max_pixels"), size.get("longest_edge"), size.get("max_pixels")
        ),
    }
    known = positive_integers(numbers, where)
    low, high = known["min_pixels"], known["max_pixels"]
    return SizeRules(
        factor=known["patch_size"] * known["merge_size"],
        min_pixels=low,
        max_pixels=high,
        processor_min_pixels=low,
        processor_max_pixels=high,
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size the model's own processor gives an image, (height, width).

    Raises:
        ValueError: The image is more elongated than 200:1, which the processor refuses.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise ValueError(f"image of {height}x{width} is more elongated than {MAX_ASPECT}:1")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def processed_size(height: int, width: int, rules: SizeRules) -> tuple[int, int]:
    """Size (height, width) of the image that the model sees: a fixed point of the processor's own resize.

    The processor's rule is used where its result stays put when resized again. Elsewhere (a narrow or empty range
    between the limits, extreme aspects) the allowed size of nearest aspect is taken, and of those (within a hundredth)
    the one of nearest area.
    """
    limits = rules.factor, rules.processor_min_pixels, rules.processor_max_pixels
    if max(height, width) / min(height, width) <= MAX_ASPECT:
        size_hw = smart_resize(height, width, rules.factor, rules.min_pixels, rules.max_pixels)
        in_range = rules.processor_min_pixels <= size_hw[0] * size_hw[1] <= rules.processor_max_pixels
        allowed = max(size_hw) <= MAX_ASPECT * min(size_hw)  # rounding may have made it more elongated
        if allowed and in_range and smart_resize(*size_hw, *limits) == size_hw:
            return size_hw
    return _nearest_aspect(height, width, rules)


def _nearest_aspect(height: int, width: int, rules: SizeRules) -> tuple[int, int]:
    area = rules.factor**2
    low, high = math.ceil(rules.min_pixels / area), rules.max_pixels // area
    wanted = math.log(height / width)
    cells = min(max(height * width / area, low), high)
    best: tuple[float, float, tuple[int, int]] | None = None
    for rows in range(1, high + 1):
        ideal = min(max(rows * width / height, rows / MAX_ASPECT), rows * MAX_ASPECT)
        bounds = max(1, math.ceil(low / rows)), high // rows
        for columns in {min(max(round(ideal), bounds[0]), bounds[1]), *bounds}:
            if not bounds[0] <= columns <= bounds[1] or max(rows, columns) > MAX_ASPECT * min(rows, columns):
                continue
            off_aspect = round(abs(math.log(rows / columns) - wanted), 2)
            key = (off_aspect, abs(math.log(rows * columns / cells)), (rows, columns))
            best = key if best is None or key < best else best
    if best is None:
        raise DataError(
            f"no image size is a multiple of {rules.factor} with {rules.min_pixels}..{rules.max_pixels} pixels"
        )
    return best[2][0] * rules.factor, best[2][1] * rules.factor


def answer_frame_hw(processed_hw: tuple[int, int]) -> tuple[int, int]:
    """Numbers of an answer are pixels of the processed image."""
    return processed_hw


def num_image_tokens(processed_hw: tuple[int, int], rules: SizeRules) -> int:
    """Image tokens in the prompt: one per merged patch."""
    return (processed_hw[0] // rules.factor) * (processed_hw[1] // rules.factor)


QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    question=QUESTION,
    system=SYSTEM,
    size_rules=size_rules,
    processed_size=processed_size,
    answer_frame_hw=answer_frame_hw,
    frame=PIXELS,
    num_image_tokens=num_image_tokens,
    usual_max_pixels=1280 * 28 * 28,  # of up to 16,384 tokens that the published processors let an image have
    sized_by_pixels=True,
)
