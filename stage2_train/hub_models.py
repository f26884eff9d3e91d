"""The pretrained towers and tokenizers of a network that are named by repositories of the Hub.

Where a field takes such a name, `owner/name@revision` holds it at a branch, tag or commit; without one it is `main`.
"""

from dataclasses import replace
from pathlib import Path

from shared.hub import HubModel, is_repository, require_cached
from stage2_train.segmentor_config import EMBEDDED, SegmentorConfig


def hub_model(name: str, field: str) -> HubModel | None:
    """The repository of a name, if it can be one.

    Args:
        name: A folder, a file, or `owner/name` with or without `@revision`.
        field: Config field that holds it, for messages.
    """
    repository, _, revision = name.partition("@")
    if name.endswith(".safetensors") or Path(name).is_dir() or not is_repository(repository):
        return None
    return HubModel(field=field, name=repository, revision=revision or "main")


def tower_names(config: SegmentorConfig) -> dict[str, str | None]:
    """What the towers and the tokenizer of a network are read from, by field; None is random weights."""
    return {
        "segmentor.vision.weights": config.vision.weights,
        "segmentor.text.weights": config.text.weights,
        "segmentor.text.tokenizer": config.text.tokenizer,
    }


def pretrained_names(config: SegmentorConfig) -> dict[str, str | None]:
    """As `tower_names`, and what the whole network is read from."""
    return {**tower_names(config), "segmentor.weights": config.weights}


def hub_models(config: SegmentorConfig) -> list[HubModel]:
    """Those of a network, by field."""
    names = tower_names(config)
    found = [hub_model(name, field) for field, name in names.items() if name is not None and name != EMBEDDED]
    return [replace(model, has_weights=not model.field.endswith("tokenizer")) for model in found if model]


def pins(config: SegmentorConfig) -> list[str]:
    """Changes, as `--set`, that hold every such model at the commit that lies in the local cache now.

    Raises:
        DataError: One is not in the cache.
    """
    return [f"{model.field}={model.name}@{require_cached(model).name}" for model in hub_models(config)]
