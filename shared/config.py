"""Configuration as frozen dataclasses: overrides, serialisation, fingerprints.

A recipe is a function returning a (nested) frozen dataclass. `--set a.b=c` replaces one leaf; the text is converted
to the type that the field declares and the dataclass's own `__post_init__` checks the result. Nothing is evaluated.
"""

import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import DataError, meant, short

T = TypeVar("T")

_NONE = ("none", "null")
"""How a text says that there is no value."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where a data set lies: a folder in the REFER layout, or a JSONL file of a user's own (`shared.jsonl`)."""

    root: str
    """Folder that holds `images/` and `<dataset>/`, or a `.jsonl` file."""
    dataset: str
    """Sub-folder with `instances.json`, for example `refcoco`; of a JSONL file always its name without the ending."""
    split_by: str = "unc"
    """Which `refs(<split_by>).p` to read: `unc`, `umd` or `google`; of a JSONL file always `jsonl`."""

    @property
    def is_jsonl(self) -> bool:
        """Whether this is a JSONL file."""
        return self.root.endswith(".jsonl")

    def __post_init__(self) -> None:
        """Name a JSONL file's data set after it; refuse an empty name."""
        if self.is_jsonl:
            object.__setattr__(self, "dataset", Path(self.root).stem)
            object.__setattr__(self, "split_by", "jsonl")
        for field in ("root", "dataset", "split_by"):
            if not getattr(self, field):
                raise DataError(f"data.{field} is empty")


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """Return `config` with each `a.b=c` applied.

    Args:
        config: A frozen dataclass, possibly nested.
        overrides: Texts of the form `path.to.field=value`. Booleans are `true`/`false`, tuples are comma-separated,
            `none` sets an optional field to None. A text that begins with `~/` is a path in the user's folder.

    Returns:
        A new config of the same type; of two overrides of one field the later wins, and no other order matters.

    Raises:
        DataError: An override without `=`, an unknown field, or a value of the wrong type, named in the message.
    """
    changes: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise DataError(f"override {override!r} is not of the form a.b=c")
        names = path.strip().split(".")
        group = changes
        for name in names[:-1]:
            group = group.setdefault(name, {})
        group[names[-1]] = _value(config, names, text.strip(), override)
    return _changed(config, changes, ", ".join(map(repr, overrides)))


def idle_overrides(idle: Iterable[tuple[str, str]], overrides: Sequence[str]) -> list[str]:
    """A line for each change that makes no difference to a run.

    Args:
        idle: Fields and whole groups that the run does not read, each with the reason.
        overrides: The changes, as `--set` takes them.

    Returns:
        `"<change> has no effect: <why>"`, in order.
    """
    reasons = dict(idle)
    lines = []
    for change in overrides:
        field = changed_field(change)
        beginnings = [".".join(field.split(".")[:end]) for end in range(1, field.count(".") + 2)]
        why = next((reasons[one] for one in beginnings if one in reasons), None)
        if why is not None:
            lines.append(f"{change} has no effect: {why}")
    return lines


def changed_field(change: str) -> str:
    """What a change as `--set` takes it is made to."""
    return change.partition("=")[0].strip()


def as_options(overrides: Sequence[str]) -> list[str]:
    """Overrides as a command takes them: `--set` before each."""
    return [part for one in overrides for part in ("--set", one)]


def _value(config: Any, names: Sequence[str], text: str, override: str) -> Any:
    """The text as what the field at the end of the path declares."""
    for depth, name in enumerate(names, start=1):
        known = [field.name for field in dataclasses.fields(config)]
        if name not in known:
            raise DataError(
                f"override {override!r}: {type(config).__name__} has no field {name!r}{meant(name, known)} "
                f"(it has {', '.join(known)})"
            )
        current = getattr(config, name)
        is_group = dataclasses.is_dataclass(current)
        if depth < len(names):
            if not is_group:
                raise DataError(f"override {override!r}: {name!r} has no fields of its own")
            config = current
        elif is_group and text.lower() not in _NONE:
            inner = ", ".join(field.name for field in dataclasses.fields(current))
            raise DataError(f"override {override!r}: {name!r} is a group; set one of its fields ({inner})")
    return _parse(text, typing.get_type_hints(type(config))[names[-1]], override)


def _changed(config: Any, changes: dict[str, Any], said: str) -> Any:
    """The config with all changes at once: a group's own checks see them together, in whatever order they came."""
    values = {
        name: _changed(getattr(config, name), value, said) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    try:
        return dataclasses.replace(config, **values)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"override {said}: {error}") from error


def _parse(text: str, hint: Any, override: str) -> Any:
    """Convert `text` to the declared type `hint`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and text.lower() in _NONE:
            return None
        return _parse(text, next(arg for arg in args if arg is not type(None)), override)
    if origin is tuple:
        items = [item.strip() for item in text.split(",") if item.strip()]
        kinds = [args[0]] * len(items) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) != len(items):
            raise DataError(
                f"override {override!r}: expected {len(kinds)} comma-separated values, got {len(items)}"
            )
        return tuple(_parse(item, kind, override) for item, kind in zip(items, kinds, strict=True))
    if origin is typing.Literal:
        if text not in args:
            raise DataError(f"override {override!r}: expected one of {', '.join(map(str, args))}")
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise DataError(f"override {override!r}: expected true or false")
        return text.lower() == "true"
    if dataclasses.is_dataclass(hint):
        name = changed_field(override)
        raise DataError(
            f"override {override!r}: {name} is a group of fields, which has no text; take a recipe that has it"
        )
    if hint in (int, float):
        try:
            value = hint(text)
        except ValueError:
            raise DataError(f"override {override!r}: {text!r} is not of type {hint.__name__}") from None
        if hint is float and not math.isfinite(value):
            raise DataError(f"override {override!r}: {text!r} is not a finite number")
        return value
    if text == "~" or text.startswith("~/"):
        text = os.path.expanduser(text)  # a shell leaves it alone behind a "="
    return Path(text) if hint is Path else text


def config_to_dict(config: Any) -> dict[str, Any]:
    """A JSON-able dictionary of a config (tuples become lists, paths become text)."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def config_from_dict(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Rebuild a config written by `config_to_dict`.

    Args:
        cls: The dataclass to build.
        values: Its JSON object.
        where: File the object came from, for messages.

    Raises:
        DataError: An unknown field, a value of another type than the field declares, or one its dataclass refuses.
    """
    return _built(cls, values, where, "")


def _built(cls: type[T], values: dict[str, Any], where: str, group: str) -> T:
    """`config_from_dict` of the fields below `group`, "" or a path that ends in a dot."""
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise DataError(f"{where}: {cls.__name__} has no field {name!r}")
    built = {name: _from_json(value, hints[name], where, group + name) for name, value in values.items()}
    try:
        return cls(**built)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error


def _from_json(value: Any, hint: Any, where: str, path: str) -> Any:
    """A JSON value as the declared type `hint`; whole numbers do for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _from_json(value, next(arg for arg in args if arg is not type(None)), where, path)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _built(hint, value, where, f"{path}.")  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(_from_json(item, kind, where, path) for item, kind in zip(value, kinds, strict=True))
    if origin is typing.Literal and value in args:
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint in (bool, int, float, str) and (type(value) is hint or (hint is float and type(value) is int)):
        return value
    raise DataError(f"{where}: {path} is {short(value)}, not {_said(hint)}")


def _said(hint: Any) -> str:
    """A declared type in words."""
    if dataclasses.is_dataclass(hint):
        return "an object with fields"
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return f"of type {getattr(hint, '__name__', hint)}" if typing.get_origin(hint) is None else f"a {hint}"


def config_fingerprint(values: Any) -> str:
    """A 16-hex-digit hash of a JSON-able value, independent of key order."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
