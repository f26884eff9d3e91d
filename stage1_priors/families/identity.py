"""How a family asks, tried out and written down: its part of a store's identity."""

from typing import Any

from shared.config import config_fingerprint
from stage1_priors.families.family import Family, SizeRules

EXPRESSION = " The odd {One}. "
"""Stands for an expression: whatever is done to capitals, spaces, braces or the last stop is seen in it."""
SIZES_HW = (
    (1, 1), (96, 96), (128, 128), (224, 448), (333, 500), (427, 640), (480, 640), (640, 480), (640, 427), (720, 1280),
    (1000, 1000), (1080, 1920), (30, 900), (900, 30), (3000, 4000), (4096, 2160),
)  # fmt: skip
"""Height and width of the images whose sizes are tried, pixels."""


def family_identity(family: Family, rules: SizeRules) -> dict[str, Any]:
    """The messages and the sizes of a family, JSON-able.

    Args:
        family: Gives both.
        rules: Its limits for one model.

    Returns:
        `family`; `prompt`, the messages about `EXPRESSION`, a text each; `sizes`, a hash over images of `SIZES_HW`: in
        which size the model sees them, the extent of an answer's numbers and the image's tokens; `unit` of the numbers.

    Raises:
        DataError: The limits leave no size.
    """
    sizes = []
    for height, width in SIZES_HW:
        seen_hw = family.processed_size(height, width, rules)
        sizes.append([seen_hw, family.answer_frame_hw(seen_hw), family.num_image_tokens(seen_hw, rules)])
    return {
        "family": family.name,
        "prompt": [_text_of(message) for message in family.messages(EXPRESSION, None)],
        "sizes": config_fingerprint(sizes),
        "unit": family.unit,
    }


def _text_of(message: dict[str, Any]) -> str:
    """A chat message as `role: text`, `<image>` where the image is."""
    parts = ("<image>" if part["type"] == "image" else part["text"] for part in message["content"])
    return f"{message['role']}: {''.join(parts)}"
