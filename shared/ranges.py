"""Lists of whole numbers as text: `0-2,5` for 0, 1, 2 and 5. Slurm writes its arrays so."""

import re
from collections.abc import Sequence

from shared.errors import DataError, short

_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def as_ranges(numbers: Sequence[int]) -> str:
    """`0-2,5` of 0, 1, 2, 5; neighbours that follow on each other become one part."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def from_ranges(text: str, name: str) -> list[int]:
    """0, 1, 2, 5 of `0-2,5`; the inverse of `as_ranges`.

    Args:
        text: The list.
        name: What it is, for messages.

    Raises:
        DataError: Text that is no such list.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise DataError(f"{name} is {short(text)}, expected numbers such as 0-2,5")
        numbers += range(first, last + 1)
    return numbers
