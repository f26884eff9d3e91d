"""Fields of a config: all leaves, as `--set` takes them, each with its documentation."""

import dataclasses
from dataclasses import dataclass

from shared.config import apply_overrides
from shared.config_fields import config_fields
from stage1_priors.recipes import RECIPES as PRIORS
from stage2_train.recipes import RECIPES as TRAIN


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    """How fast; over
    two lines."""
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None
    """A name."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    on: bool = True
    """Whether."""
    inner: Inner = dataclasses.field(default_factory=Inner)
    """A group."""


def test_leaves_in_order_with_their_meaning() -> None:
    found = [(field.path, field.text, field.meaning) for field in config_fields(Outer())]
    assert found == [
        ("on", "true", "Whether."),
        ("inner.rate", "0.1", "How fast; over two lines."),
        ("inner.sizes", "1,2", ""),
        ("inner.name", "none", "A name."),
    ]


def test_every_field_of_every_recipe_is_documented_and_can_be_set_to_what_it_is() -> None:
    for name, recipe in {**{f"priors {n}": r for n, r in PRIORS.items()}, **TRAIN}.items():
        config = recipe()
        found = list(config_fields(config))
        assert [field.path for field in found if not field.meaning] == [], name
        same = [f"{field.path}={field.text}" for field in found if field.value not in ((), "")]
        assert same and apply_overrides(config, same) == config, name
