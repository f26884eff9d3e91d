"""Qwen3-VL: thousandths of the image's sides, answers as JSON text.

Sizes follow Qwen2.5-VL's rule with another factor (32 instead of 28). The numbers are relative, so the frame does not
depend on the size; the size is still fixed here, so that it is known, and every engine sees the same pixels. Sources
disagree whether the numbers end at 999 or at 1000: 1000 is taken, which shifts a box by a thousandth at most. The model
was trained without a system line.
"""

from stage1_priors.families.family import THOUSANDTHS, Family
from stage1_priors.families.qwen2_5_vl import num_image_tokens, processed_size, size_rules

QUESTION = "Locate the {expression} in the image and output its bbox coordinates in JSON format."


def answer_frame_hw(processed_hw: tuple[int, int]) -> tuple[int, int]:
    """Numbers of an answer are thousandths of the sides, whatever the size."""
    return 1000, 1000


QWEN3_VL = Family(
    name="qwen3_vl",
    question=QUESTION,
    size_rules=size_rules,
    processed_size=processed_size,
    answer_frame_hw=answer_frame_hw,
    frame=THOUSANDTHS,
    num_image_tokens=num_image_tokens,
    usual_max_pixels=1280 * 32 * 32,
    sized_by_pixels=True,
)
