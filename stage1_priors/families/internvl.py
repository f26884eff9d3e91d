"""InternVL3 (the `InternVLForConditionalGeneration` of Transformers): thousandths of the sides, `<box>[[...]]</box>`.

The model's processor covers an image with a grid of square tiles (448 x 448), stretches the image to that grid, cuts
it, and adds the whole image as one more tile if there are several. The same grid is chosen here, by the same rule, and
the image is stretched to it before any engine sees it: an image that is a whole grid already keeps it. The
numbers mean the whole image, not a tile. `model.max_pixels` lowers the number of tiles (448 * 448 = 200704: one tile).

`<ref>` and `<box>` are special tokens of the real tokenizer and are left out of the decoded text; the parser reads
the answer with and without them.
"""

import math
from pathlib import Path

from shared.errors import DataError
from stage1_priors.families.family import THOUSANDTHS, Family, SizeRules, positive_integers

QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{expression}</ref>"


def size_rules(config: dict, preprocessor: dict, where: str) -> SizeRules:
    """Side of a tile, least and greatest number of tiles, tokens of a tile.

    Raises:
        DataError: A number is missing or not a positive integer, or tiles are not square.
    """
    size = preprocessor.get("size") or {}
    known = positive_integers(
        {
            "size.height": size.get("height"),
            "size.width": size.get("width"),
            "min_patches": preprocessor.get("min_patches"),
            "max_patches": preprocessor.get("max_patches"),
        },
        where,
    )
    config_path = str(Path(where).with_name("config.json"))
    tokens = positive_integers({"image_seq_length": config.get("image_seq_length")}, config_path)
    side = known["size.height"]
    if side != known["size.width"]:
        raise DataError(f"{where}: tiles of {side}x{known['size.width']} are not square")
    low, high = known["min_patches"] * side**2, known["max_patches"] * side**2
    return SizeRules(
        factor=side,
        min_pixels=low,
        max_pixels=high,
        processor_min_pixels=low,
        processor_max_pixels=high,
        cell_tokens=tokens["image_seq_length"],
    )


def processed_size(height: int, width: int, rules: SizeRules) -> tuple[int, int]:
    """Size (height, width) of the tile grid for an image.

    The grid whose aspect is nearest (by the difference of width / height); of grids of equal aspect the largest one
    that has less than twice the image's area.

    Raises:
        DataError: No grid has an allowed number of tiles.
    """
    area = rules.factor**2
    low, high = math.ceil(rules.min_pixels / area), rules.max_pixels // area
    grids = [
        (rows, columns)
        for columns in range(1, high + 1)
        for rows in range(1, high // columns + 1)
        if rows * columns >= low
    ]
    if not grids:
        raise DataError(
            f"no grid of {rules.factor} x {rules.factor} tiles has {rules.min_pixels}..{rules.max_pixels} pixels"
        )
    best, best_off = (0, 0), math.inf
    for rows, columns in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        off = abs(width / height - columns / rows)
        if off < best_off or (off == best_off and height * width > 0.5 * area * rows * columns):
            best, best_off = (rows, columns), off
    return best[0] * rules.factor, best[1] * rules.factor


def answer_frame_hw(processed_hw: tuple[int, int]) -> tuple[int, int]:
    """Numbers of an answer are thousandths of the whole image's sides, whatever the tiles."""
    return 1000, 1000


def num_image_tokens(processed_hw: tuple[int, int], rules: SizeRules) -> int:
    """Image tokens in the prompt: those of every tile, and of the whole image if there are several."""
    tiles = (processed_hw[0] // rules.factor) * (processed_hw[1] // rules.factor)
    return rules.cell_tokens * (tiles + (tiles > 1))


INTERNVL = Family(
    name="internvl",
    question=QUESTION,
    size_rules=size_rules,
    processed_size=processed_size,
    answer_frame_hw=answer_frame_hw,
    frame=THOUSANDTHS,
    num_image_tokens=num_image_tokens,
)
