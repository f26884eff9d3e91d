"""Failures of an engine or a proposer at its start, told in one line: a model that does not fit is no bug."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import DataError
from shared.runlog import say

_PYDANTIC = re.compile(r"\d+ validation errors? for \w+")
"""Its first line; then the name of a field, if it has one, and indented what is wrong with it."""


@contextmanager
def starting(what: str, quiet: bool) -> Iterator[None]:
    """Turn whatever a start fails with into a `DataError`; its traceback goes to standard error before, if not quiet.

    Args:
        what: What is started and what it did not do, such as `engine.kind=vllm did not start`.
        quiet: No traceback.

    Raises:
        DataError: `what`, and the reason; one that was raised inside stays as it is.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        say(traceback.format_exc().rstrip(), quiet)
        raise DataError(f"{what}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Type and first line that says something of the error that caused all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()] or ["it said nothing"]
    if _PYDANTIC.fullmatch(lines[0]):
        lines = [line for line in lines if line.startswith("  ")] or lines
    return f"{type(error).__name__}: {lines[0].strip().partition(' [type=')[0]}"
