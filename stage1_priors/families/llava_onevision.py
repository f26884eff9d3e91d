"""LLaVA-OneVision: shares of the sides, `[0.12, 0.34, 0.56, 0.78]`.

The model's processor fits an image into one of a list of sizes that are grids of 384 x 384 tiles, pads what is left
over, and adds the whole image, stretched to one tile. Whether the numbers of an answer mean the image or the image
padded to a square is disputed, and differs between data sets the models were trained on. So only *square* sizes of the
list are used here: the image is stretched to a square, nothing is padded, and both readings are the same. Of the
squares the smallest one is taken that is not smaller in area than the image, or the largest one allowed.
`model.max_pixels` lowers the number of tiles (384 * 384 = 147456: one tile).
"""

import math
from pathlib import Path
from typing import Any

from shared.errors import DataError
from stage1_priors.families.family import SHARES, Family, SizeRules, positive_integers

QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: {expression}"
POOLED = "anyres_max_"
"""Prefix of `vision_aspect_ratio`; the number after it is the tiles beyond which tokens are pooled."""
POOLING_MARGIN = 1.1
"""Pooling sets in where the side of the token map is this much longer than allowed."""


def size_rules(config: dict, preprocessor: dict, where: str) -> SizeRules:
    """Side of a tile, smallest and largest square of the processor's list, tokens of a tile.

    Raises:
        DataError: A number is missing or not a positive integer, the list holds no squares or squares with gaps
            between them, or the model's options are not those whose tokens can be counted.
    """
    config_path = str(Path(where).with_name("config.json"))
    vision = config.get("vision_config") or {}
    size = preprocessor.get("size") or {}
    aspect = str(config.get("vision_aspect_ratio", "anyres_max_9"))
    names = ("image_size", "patch_size")
    tile = positive_integers({f"vision_config.{name}": vision.get(name) for name in names}, config_path)
    side = tile["vision_config.image_size"]
    for name in ("height", "width"):
        if size.get(name) != side:
            raise DataError(
                f"{where}: size.{name} is {size.get(name)!r}, but the model's tiles are {side} pixels wide"
            )
    strategy = config.get("vision_feature_select_strategy", "full")
    if strategy != "full" or not aspect.startswith(POOLED) or not aspect[len(POOLED) :].isdecimal():
        raise DataError(
            f"{config_path}: vision_feature_select_strategy {strategy!r} with vision_aspect_ratio {aspect!r} is not "
            f"supported (expected 'full' and '{POOLED}N')"
        )
    squares = _squares(preprocessor.get("image_grid_pinpoints"), side, where)
    return SizeRules(
        factor=side,
        min_pixels=squares[0] ** 2,
        max_pixels=squares[-1] ** 2,
        processor_min_pixels=squares[0] ** 2,
        processor_max_pixels=squares[-1] ** 2,
        cell_tokens=(side // tile["vision_config.patch_size"]) ** 2,
        pooled_above=int(aspect[len(POOLED) :]),
    )


def _squares(pinpoints: Any, side: int, where: str) -> list[int]:
    """Sides of the square sizes in the processor's list, ascending."""
    if not isinstance(pinpoints, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in pinpoints
    ):
        raise DataError(f"{where}: image_grid_pinpoints is {pinpoints!r}, expected a list of [height, width]")
    squares = sorted({height for height, width in pinpoints if height == width})
    if not squares or squares != list(range(squares[0], squares[-1] + 1, side)) or squares[0] % side:
        raise DataError(
            f"{where}: the squares {squares} of image_grid_pinpoints are not consecutive multiples of {side}"
        )
    return squares


def processed_size(height: int, width: int, rules: SizeRules) -> tuple[int, int]:
    """Size (height, width) of the square for an image: the smallest one of at least its area, or the largest allowed.

    Raises:
        DataError: No square lies between the limits.
    """
    low = math.ceil(math.sqrt(rules.min_pixels) / rules.factor)
    high = math.isqrt(rules.max_pixels) // rules.factor
    if low > high:
        raise DataError(
            f"no square of {rules.factor} x {rules.factor} tiles has {rules.min_pixels}..{rules.max_pixels} pixels"
        )
    tiles = min(max(math.ceil(math.sqrt(height * width) / rules.factor), low), high)
    return tiles * rules.factor, tiles * rules.factor


def answer_frame_hw(processed_hw: tuple[int, int]) -> tuple[int, int]:
    """Numbers of an answer are shares of the sides, whatever the size."""
    return 1, 1


def num_image_tokens(processed_hw: tuple[int, int], rules: SizeRules) -> int:
    """Image tokens in the prompt: the whole image, the tiles (pooled if there are many), one line end per row."""
    side = math.isqrt(rules.cell_tokens) * (processed_hw[0] // rules.factor)
    if rules.pooled_above is not None:
        excess = math.sqrt(side * side / (rules.pooled_above * rules.cell_tokens))
        side = int(side // excess) if excess > POOLING_MARGIN else side
    return rules.cell_tokens + side * side + side


LLAVA_ONEVISION = Family(
    name="llava_onevision",
    question=QUESTION,
    size_rules=size_rules,
    processed_size=processed_size,
    answer_frame_hw=answer_frame_hw,
    frame=SHARES,
    unit=0.001,
    num_image_tokens=num_image_tokens,
)
