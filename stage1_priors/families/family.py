"""What a model family has to say: size rules, messages, and the frame of its answers.

Frames:
    original frame: pixels of the image as stored on disk, x in [0, W], y in [0, H].
    processed frame: pixels of the resized image that the model sees; `processed_hw` is its size.
    answer frame: whatever the family's numbers mean; `answer_frame_hw` gives its extent for one image.
    normalised frame: the original image as [0, 1] x [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shared.errors import DataError
from stage1_priors.parse import BRACKETS, Order, ParsedAnswer, Parser, parse_answer

PIXELS = "pixels of the resized image"
THOUSANDTHS = "0 to 1000"
SHARES = "0 to 1"


@dataclass(frozen=True, kw_only=True)
class SizeRules:
    """Limits on the size of the image that a model sees."""

    factor: int
    """Both sides are multiples of this (patch size x merge size, or the side of a tile), pixels."""
    min_pixels: int
    """Least height x width asked for here."""
    max_pixels: int
    """Greatest height x width asked for here."""
    processor_min_pixels: int
    """The limit in the model's own files, which the engine's image processor enforces."""
    processor_max_pixels: int
    """As above, upper."""
    cell_tokens: int = 1
    """Image tokens of one cell of `factor` x `factor` pixels."""
    pooled_above: int | None = None
    """Number of cells from which on the model pools the tokens of its tiles; None: never."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family; all its rules are pure functions."""

    name: str
    """Short name kept in the store."""
    question: str
    """What is asked about an image, `{expression}` where the expression goes."""
    system: str = ""
    """The system line; "" for none."""
    size_rules: Callable[[dict, dict, str], SizeRules]
    """(config.json, preprocessor config, its path for messages) -> rules."""
    processed_size: Callable[[int, int, SizeRules], tuple[int, int]]
    """(height, width, rules) -> (height, width) of the image that the model sees."""
    answer_frame_hw: Callable[[tuple[int, int]], tuple[int, int]]
    """processed (height, width) -> extent (height, width) of the numbers in an answer."""
    frame: str
    """What the numbers are, in words: `PIXELS`, `THOUSANDTHS`, `SHARES`, or words of its own."""
    unit: float = 1.0
    """Step in which the numbers are counted: shorter sides are no box, and edge distributions live on its multiples."""
    parser: Parser = BRACKETS
    """How the numbers of a box are found in an answer."""
    order: Order = "xyxy"
    """The order in which they are written; everything behind the parser has x before y."""
    num_image_tokens: Callable[[tuple[int, int], SizeRules], int]
    """processed (height, width) -> tokens the image takes in the prompt; checked against what the engine did."""
    usual_max_pixels: int | None = None
    """Greatest height x width of an image unless the settings say otherwise, for families whose own limit is far above
    what anybody asks with; None: the model's own limit."""
    sized_by_pixels: bool = False
    """Whether the family's image processor takes its limits as numbers of pixels, by `size.shortest_edge` and
    `size.longest_edge`; an engine then reserves no memory for larger images than are asked about."""

    def messages(self, expression: str, image: Any) -> list[dict[str, Any]]:
        """Chat messages: the system line if there is one, then the image, then the question.

        The image stands before the question, so that the questions about one image share their prefix.
        """
        parts = [
            {"type": "image", "image": image},
            {"type": "text", "text": self.question.format(expression=expression)},
        ]
        turn: dict[str, Any] = {"role": "user", "content": parts}
        if not self.system:
            return [turn]
        return [{"role": "system", "content": [{"type": "text", "text": self.system}]}, turn]

    def parse(
        self, text: str, frame_hw: tuple[int, int], finish_reason: str | None, tolerance: float
    ) -> ParsedAnswer:
        """An answer in the family's own notation, order and unit; arguments as of `parse_answer`."""
        return parse_answer(text, frame_hw, finish_reason, tolerance, self.unit, self.parser, self.order)

    def asking(self, question: str, system: str) -> "Family":
        """The family with other words; "" keeps its own."""
        return replace(self, question=question or self.question, system=system or self.system)


def positive_integers(numbers: dict[str, Any], where: str) -> dict[str, int]:
    """The same numbers, each a positive integer.

    Raises:
        DataError: One of them is missing or is not; the message names it.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise DataError(f"{where}: {name} is {value!r}, expected a positive integer")
    return numbers


def box_to_norm(box_xyxy: np.ndarray, frame_hw: np.ndarray) -> np.ndarray:
    """Boxes of an answer frame in the normalised frame of the original image.

    Resizing does not crop, so the answer frame and the original image cover the same rectangle and a division by
    the frame's extent is exact.

    Args:
        box_xyxy: float [N, 4] in the answer frame.
        frame_hw: int [N, 2], extent of each row's answer frame.

    Returns:
        float32 [N, 4] in [0, 1] for boxes within the frame.
    """
    extent_N4 = np.asarray(frame_hw, np.float64)[:, [1, 0, 1, 0]]
    return (np.asarray(box_xyxy, np.float64) / extent_N4).astype(np.float32)
