"""The error a user can mend: wrong data, a wrong store, a wrong option.

An `OSError` that names a file (no right to read it, a folder in its place) is told in one line as well, by the command
line. Anything else that goes wrong is a bug and keeps its traceback. Bad *model answers* are neither: they are counted
statuses (`shared.types.AnswerStatus`).
"""

import difflib
from collections.abc import Iterable
from typing import Any


class DataError(ValueError):
    """Input that cannot be used; the message is one line naming file, row and value.

    The command line prints the message alone and exits with status 2.
    """


def short(value: Any, most: int = 80) -> str:
    """The start of a value's repr, at most `most` characters, for a message of one line."""
    return _cut(repr(value), most)


def one_line(error: BaseException, most: int = 600) -> str:
    """What an error says, in one line of at most `most` characters; its type too, if that is no `DataError`."""
    text = " ".join(str(error).split())
    if not isinstance(error, DataError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return _cut(text, most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def meant(word: str, known: Iterable[str]) -> str:
    """`; is 'x' meant?` for a message about a word that is not among those known, "" if none resembles it."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; is {near[0]!r} meant?" if near else ""


def unknown_recipe(name: str, recipes: Iterable[str]) -> str:
    """What a message says of a recipe that is none: those that resemble it, and where all are listed."""
    near = ", ".join(difflib.get_close_matches(name, list(recipes), n=5))
    return f"no recipe {name!r}{f' (close to it: {near})' if near else ''}; `l2l recipes` lists them all"
