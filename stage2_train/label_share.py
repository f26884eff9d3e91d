"""What share of the train images a run read with masks; the share that was asked for need not be it."""

import math
from fractions import Fraction


def label_share(asked: float | None, num_images: int | None, num_train_images: int | None) -> float | None:
    """Share of the train images whose masks are used, in [0, 1]; None if it is not known.

    As it was asked for, if that is how many there are: not where a file names them, nor where it was a share of those
    that carry masks at all.

    Args:
        asked: The run's `fraction`.
        num_images: Images that it read with masks; None if unknown.
        num_train_images: Train images in all; None if unknown.
    """
    if asked is None or num_images is None or not num_train_images:
        return asked
    as_asked = num_images == math.floor(Fraction(repr(asked)) * num_train_images)
    return asked if as_asked else num_images / num_train_images


def percent_text(fraction: float | None) -> str:
    """`0.05` -> `5%`; three digits."""
    return "unknown" if fraction is None else f"{fraction * 100:.3g}%"
