"""Pickles of plain containers, read without running anything.

The REFER annotations are pickles, a format that can name any function and have it called while it is read. The reader
here refuses every name: no class or function is looked up, so nothing can be called. What remains are the values that
have opcodes of their own: None, booleans, numbers, strings, bytes, and dicts, lists, tuples and sets of those.

Left out on purpose: objects that need a name to be rebuilt (numpy scalars, dates, sets below protocol 4, bytes that
Python 3 wrote below protocol 3). The published files hold none of them. Not guarded: a file made to exhaust memory.
"""

import io
import pickle
from typing import Any, NoReturn

from shared.errors import DataError


class _RefusedName(pickle.UnpicklingError):
    """The pickle asked for something by name."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse: plain containers need no name."""
        raise _RefusedName(f"names {f'{module}.{name}'[:100]!r}")

    def persistent_load(self, key: Any) -> NoReturn:
        """Refuse: a reference to an object outside the file."""
        raise _RefusedName("refers to an object outside the file")


def loads_plain(data: bytes, where: str) -> Any:
    """Unpickle plain containers from bytes of any protocol.

    Strings that Python 2 wrote as bytes are read as UTF-8, or as Latin-1 throughout when they are not all UTF-8.

    Args:
        data: The pickle.
        where: The file the bytes came from, for messages.

    Raises:
        DataError: The bytes are no whole pickle, or name a class or function.
    """
    try:
        try:
            return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except _RefusedName as error:
        raise DataError(f"{where}: refused: the pickle {error}; only plain containers are read") from error
    except MemoryError as error:
        raise DataError(f"{where}: refused: the pickle asks for more memory than there is") from error
    except Exception as error:  # a damaged pickle raises almost anything: EOFError, KeyError, ValueError, ...
        raise DataError(f"{where}: not a whole pickle: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
