"""Overrides are converted to the declared types and refused by name; a config survives its JSON form."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from shared.config import (
    DataConfig,
    apply_overrides,
    config_fingerprint,
    config_from_dict,
    config_to_dict,
)
from shared.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    sides: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise DataError(f"rate is {self.rate}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    maybe: int | None = None
    flag: bool = False
    mode: Literal["a", "b"] = "a"
    path: Path = Path(".")
    text: str = ""


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("inner.rate=2", lambda c: c.inner.rate, 2.0),
        ("inner.sides=3, 4", lambda c: c.inner.sides, (3, 4)),
        ("inner.names=x,y,z", lambda c: c.inner.names, ("x", "y", "z")),
        ("inner.names=", lambda c: c.inner.names, ()),
        ("maybe=7", lambda c: c.maybe, 7),
        ("flag=True", lambda c: c.flag, True),
        ("mode=b", lambda c: c.mode, "b"),
        ("path=a/b", lambda c: c.path, Path("a/b")),
        ("path=~/b", lambda c: c.path, Path.home() / "b"),
        ("text=k=v", lambda c: c.text, "k=v"),
    ],
)
def test_an_override_takes_the_declared_type(override, get, value):
    changed = get(apply_overrides(Outer(), [override]))
    assert changed == value and type(changed) is type(value)


@dataclass(frozen=True, kw_only=True)
class Pair:
    low: int = 1
    high: int = 2

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise DataError(f"low is {self.low}, high {self.high}")


@dataclass(frozen=True, kw_only=True)
class Holder:
    pair: Pair = field(default_factory=Pair)
    other: int = 0


@pytest.mark.parametrize("order", list(itertools.permutations(["pair.low=5", "other=3", "pair.high=6"])))
def test_fields_that_must_fit_together_are_set_together(order):
    assert apply_overrides(Holder(), order) == Holder(pair=Pair(low=5, high=6), other=3)
    with pytest.raises(DataError, match="low is 5, high 2"):
        apply_overrides(Holder(), [one for one in order if "high" not in one])


@dataclass(frozen=True, kw_only=True)
class MayHold:
    pair: Pair | None = None


def test_a_group_may_be_left_out_but_has_no_text():
    assert apply_overrides(MayHold(pair=Pair()), ["pair=none"]) == MayHold()
    with pytest.raises(DataError, match="override 'pair=true': pair is a group of fields"):
        apply_overrides(MayHold(), ["pair=true"])
    with pytest.raises(DataError, match="override 'pair=none': pair is a group of fields"):
        apply_overrides(Holder(), ["pair=none"])


def test_none_and_the_last_one_wins():
    config = apply_overrides(Outer(), ["maybe=1", "maybe=2", "inner.rate=1", "inner.sides=5,6"])
    assert config.maybe == 2 and config.inner == Inner(rate=1.0, sides=(5, 6))
    assert apply_overrides(config, ["maybe=none"]).maybe is None
    assert Outer() == Outer(), "the original is untouched"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("flag", "not of the form"),
        ("=1", "not of the form"),
        ("nothing=1", "no field 'nothing'.*inner, maybe"),
        ("inner.nothing=1", "Inner has no field 'nothing' "),
        ("inner.ratee=1", "Inner has no field 'ratee'; is 'rate' meant\\?"),
        ("inner=1", "is a group"),
        ("maybe.deeper=1", "no fields of its own"),
        ("inner.rate=fast", "'fast' is not of type float"),
        ("inner.sides=1", "expected 2 comma-separated"),
        ("maybe=1.5", "not of type int"),
        ("flag=1", "expected true or false"),
        ("mode=c", "expected one of a, b"),
        ("inner.rate=-1", "rate is -1"),
        ("inner.rate=nan", "'nan' is not a finite number"),
        ("inner.rate=-inf", "'-inf' is not a finite number"),
    ],
)
def test_a_wrong_override_is_named(override, message):
    with pytest.raises(DataError, match=message):
        apply_overrides(Outer(), [override])


def test_a_config_survives_json():
    config = Outer(inner=Inner(sides=(7, 8), names=("q",)), maybe=3, path=Path("x"))
    assert config_from_dict(Outer, config_to_dict(config), "file") == config
    assert config_from_dict(Outer, {"inner": {"rate": 1}, "maybe": None}, "file") == Outer(
        inner=Inner(rate=1)
    )
    with pytest.raises(DataError, match="file.*'nope'"):
        config_from_dict(Outer, {"nope": 1}, "file")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": 5}, "inner is 5, not an object"),
        ({"inner": {"rate": "fast"}}, "inner.rate is 'fast', not of type float"),
        ({"inner": {"rate": True}}, "inner.rate is True, not of type float"),
        ({"inner": {"sides": [1]}}, r"inner.sides is \[1\], not a tuple\[int, int\]"),
        ({"inner": {"sides": [1, "b"]}}, "inner.sides is 'b', not of type int"),
        ({"inner": {"names": 3}}, "inner.names is 3, not a tuple"),
        ({"inner": None}, "inner is None"),
        ({"maybe": 1.5}, "maybe is 1.5, not of type int"),
        ({"mode": ["a"]}, r"mode is \['a'\], not one of a, b"),
        ({"path": 1}, "path is 1, not of type Path"),
        ({"text": {}}, "text is {}, not of type str"),
    ],
)
def test_a_damaged_file_is_named_with_the_field(values, message):
    with pytest.raises(DataError, match=f"file: {message}"):
        config_from_dict(Outer, values, "file")


def test_a_fingerprint_follows_the_values_not_their_order():
    first = config_fingerprint({"a": 1, "b": [1, 2]})
    assert first == config_fingerprint({"b": [1, 2], "a": 1})
    assert first != config_fingerprint({"a": 1, "b": [2, 1]})
    assert first != config_fingerprint({"a": 1.5, "b": [1, 2]})


@pytest.mark.parametrize("name", ["root", "dataset", "split_by"])
def test_empty_names_are_refused(name):
    values = {"root": "r", "dataset": "d", "split_by": "unc"} | {name: ""}
    with pytest.raises(DataError, match=f"data.{name}"):
        DataConfig(**values)
