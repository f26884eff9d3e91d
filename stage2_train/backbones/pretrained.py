"""Pretrained towers from local files: a Hugging Face folder, a repository of the local Hub cache, or our safetensors.

Nothing is fetched here; `l2l fetch` fills the cache beforehand.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging

from shared.errors import DataError
from shared.hub import require_cached
from stage2_train.hub_models import hub_model, pretrained_names
from stage2_train.segmentor_config import EMBEDDED, SegmentorConfig
from stage2_train.tensor_files import read_tensors


def pretrained_folder(name: str, field: str, *, has_weights: bool = True) -> Path:
    """Where a folder or a repository of the local Hub cache lies.

    Args:
        name: A folder, or a repository such as `google-bert/bert-base-uncased`, with or without `@revision`.
        field: Config field that holds the name, for the message.
        has_weights: False where only a tokenizer is wanted.

    Raises:
        DataError: It is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    model = hub_model(name, field)
    if model is None:
        raise DataError(f"{field}: {name} is neither a folder nor the name of a repository")
    return require_cached(replace(model, has_weights=has_weights))


def where_pretrained(config: SegmentorConfig) -> dict[str, str]:
    """What a network starts from, field by field in words; no weights are read, and what is missing is said, too."""
    said = {}
    for field, name in pretrained_names(config).items():
        if name is None:
            starts_at_random = field != "segmentor.weights" and field.split(".")[1] not in config.loaded_parts
            said[field] = "none: it starts at random" if starts_at_random else "none"
        elif name == EMBEDDED:
            said[field] = "shipped with the code"
        elif name.endswith(".safetensors"):
            said[field] = name if Path(name).is_file() else f"{name}: NOT FOUND"
        else:
            try:
                folder = pretrained_folder(name, field, has_weights=not field.endswith("tokenizer"))
                said[field] = name if str(folder) == name else f"{name} in {folder}"
            except DataError as error:
                said[field] = f"NOT FOUND: {str(error).removeprefix(f'{field}: ')}"
    return said


def build_tower(
    model_class: Any,
    own: Any,
    weights: str | None,
    *,
    field: str,
    prefix: str,
    same: Sequence[str],
    dropped: Sequence[str] = (),
    **options: Any,
) -> Any:
    """A transformers model of our own config, with random or pretrained weights.

    Args:
        model_class: A transformers model class.
        own: Its config, made from ours.
        weights: A folder, a cached repository, a `.safetensors` file of our own names, or None.
        field: Config field of `weights`, for messages.
        prefix: What the tower's tensors are called in a `.safetensors` file, dot included.
        same: Fields of the config in which a pretrained folder must agree with `own`. What only training reads
            (dropout, stochastic depth) is ours and is not compared.
        dropped: Sub-modules that the segmentor does not use; they become identities.
        **options: Passed to the model class.

    Raises:
        DataError: Weights that are missing, or of another network.
    """
    from_file = weights is not None and weights.endswith(".safetensors")
    if weights is None or from_file:
        model = model_class(own, **options)
    else:
        model = _from_folder(model_class, own, weights, field, same, options)
    for name in dropped:
        setattr(model, name, nn.Identity())
    if from_file:
        _load_file(model, Path(str(weights)), prefix, field)
    return model


def _from_folder(
    model_class: Any, own: Any, weights: str, field: str, same: Sequence[str], options: dict[str, Any]
) -> Any:
    folder = pretrained_folder(weights, field)
    if not (folder / "config.json").is_file():
        raise DataError(f"{field}: {folder} has no config.json")
    found = type(own).from_pretrained(folder, local_files_only=True)
    for name in same:
        theirs, ours = _plain(getattr(found, name)), _plain(getattr(own, name))
        if theirs != ours:
            raise DataError(f"{field}: {folder} has {name} {theirs}, not {ours}")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is checked below; what the segmentor does not use is no news
    try:
        model, info = model_class.from_pretrained(
            folder,
            config=own,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except (OSError, RuntimeError, SafetensorError) as error:  # no weights file, a torn one, another shape
        raise DataError(f"{field}: {folder} cannot be loaded ({str(error).splitlines()[0]})") from error
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise DataError(f"{field}: {folder} lacks tensor {min(info['missing_keys'])}")
    return model


def _load_file(model: nn.Module, path: Path, prefix: str, field: str) -> None:
    """Load the tensors below `prefix`; all of the model's must be there in its shapes, and no other part's beside."""
    if not path.is_file():
        raise DataError(f"{field}: {path} does not exist")
    try:
        tensors = read_tensors(path)
    except DataError as error:
        raise DataError(f"{field}: {error}") from error
    part = prefix.partition(".")[0]
    if others := sorted({name.partition(".")[0] for name in tensors} - {part}):
        raise DataError(
            f"{field}: {path} holds tensors of {', '.join(others)} too, which would start untrained; name it by "
            "segmentor.weights, with the parts that are wanted in segmentor.weight_parts"
        )
    own = model.state_dict()
    for name, value in own.items():
        found = tensors.get(prefix + name)
        if found is None:
            raise DataError(f"{field}: {path} lacks tensor {prefix}{name}")
        if found.shape != value.shape:
            raise DataError(
                f"{field}: {path}: {prefix}{name} has shape {tuple(found.shape)}, the model has {tuple(value.shape)}"
            )
    model.load_state_dict({name: tensors[prefix + name].to(own[name].dtype) for name in own})


def _plain(value: Any) -> Any:
    """Lists and tuples alike; whole floats as they are."""
    return list(value) if isinstance(value, (list, tuple)) else value
