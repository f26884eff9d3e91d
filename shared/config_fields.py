"""The fields of a config with their values and what they mean, read from the source of its dataclasses.

A field is documented by the string below it, as everywhere in this project. Pure but for reading the source.
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ConfigField:
    """One leaf of a config, as `--set` names it."""

    path: str
    """For example `optim.lr`."""
    value: Any
    """Its value."""
    meaning: str
    """Its documentation on one line; "" where there is none."""

    @property
    def text(self) -> str:
        """The value as `--set` takes it."""
        return text_of_value(self.value)


def text_of_value(value: Any) -> str:
    """A field's value as `--set` takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def config_fields(config: Any, prefix: str = "") -> Iterator[ConfigField]:
    """The leaves of a (nested) config in the order they are declared; a group that is None counts as a leaf."""
    meanings = field_meanings(config.__class__)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from config_fields(value, f"{prefix}{field.name}.")
        else:
            yield ConfigField(path=f"{prefix}{field.name}", value=value, meaning=meanings.get(field.name, ""))


@functools.cache
def field_meanings(cls: type) -> dict[str, str]:
    """The strings below the fields of a dataclass, by field, each on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[node.target.id] = " ".join(str(following.value.value).split())
    return found
