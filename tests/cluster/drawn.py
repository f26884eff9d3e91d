"""Recipes that are small enough for tests of batch jobs, as a command takes them."""

from pathlib import Path
from typing import Any


def settings(values: dict[str, Any]) -> list[str]:
    """`--set` options."""
    return [part for item in values.items() for part in ("--set", "{}={}".format(*item))]


def priors_recipe(data: Path, stores: Path, splits: str) -> list[str]:
    """Priors of drawn scenes by the tiny model, through the engine that starts quickly."""
    values = {
        "data.root": data,
        "cache_root": stores,
        "splits": splits,
        "engine.kind": "transformers",
        "canary.mode": "skip",
    }
    return ["embedded-soft-box", *settings(values)]
