"""Reads safetensors files, whole or their headers alone; a torn one is told in one wording."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from shared.errors import DataError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file that is there.

    Raises:
        DataError: It is torn, or something else.
    """
    with _torn_named(path):
        return load_file(path)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a file that is there; its header alone is read.

    Raises:
        DataError: It is torn, or something else.
    """
    with _torn_named(path), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _torn_named(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({error})") from error
