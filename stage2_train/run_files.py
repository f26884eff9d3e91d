"""The files of a run folder that are not the log: settings, split, exported network, end mark.

config.json   written first; a folder belongs to one configuration
split.json    labelled image ids and counts
checkpoints/  see `stage2_train.checkpoint`
model/        model.safetensors and config.json of the finished network
done.json     written last
"""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from shared.config import config_from_dict, config_to_dict
from shared.errors import DataError
from stage2_train.checkpoint import write_json
from stage2_train.config import TrainConfig
from stage2_train.segmentor import ReferringSegmentor, build_segmentor, load_pretrained
from stage2_train.segmentor_config import PARTS, SegmentorConfig


def run_record(
    config: TrainConfig,
    recipe: str,
    overrides: Sequence[str],
    store: Mapping[str, str] | None,
    num_processes: int,
) -> dict[str, Any]:
    """The content of `config.json`."""
    names = ("torch", "accelerate", "transformers", "numpy", "pillow")
    return {
        "recipe": recipe,
        "overrides": list(overrides),
        "method": config.method,
        "seed": config.seed,
        "fraction": config.fraction,
        "global_batch": {"labelled": config.batch_labelled, "unlabelled": config.batch_unlabelled},
        "num_processes": num_processes,
        "store": dict(store) if store else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "config": config_to_dict(config),
    }


def require_same_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse a folder that belongs to another configuration.

    What cannot change the result (`runtime`, where the store lies, number of processes, versions) may differ.

    Raises:
        DataError: A setting, or the store's content, differs; the first one is named.
    """
    path = folder / "config.json"
    old = read_json(path)
    differing = _first_difference(_identity(old), _identity(record))
    if differing:
        raise DataError(f"{path}: belongs to another run ({differing}); choose another folder")


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    config = {k: v for k, v in record["config"].items() if k not in ("runtime", "store", "cache_root")}
    store = record.get("store") or {}
    return {"config": config, "store": store.get("fingerprint")}


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            found = _first_difference(old.get(name), new.get(name), f"{where}.{name}" if where else name)
            if found:
                return found
        return ""
    return "" if old == new else f"{where.removeprefix('config.')} is {old!r} there, {new!r} now"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: No such file, or no JSON object in it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object")
    return value


def read_run_config(folder: Path) -> TrainConfig:
    """The configuration of a run folder.

    Raises:
        DataError: No `config.json`, or one that no training wrote.
    """
    path = folder / "config.json"
    values = read_json(path).get("config")
    if not isinstance(values, dict):
        raise DataError(f"{path}: has no 'config' object; not a run's folder")
    return config_from_dict(TrainConfig, values, str(path))


def export_model(model: ReferringSegmentor, folder: Path) -> None:
    """Write `model/`: weights first, the config last (its presence means the folder is whole)."""
    target = folder / "model"
    target.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()
    }
    save_file(tensors, target / ".model.writing")
    os.replace(target / ".model.writing", target / "model.safetensors")
    write_json(target / "config.json", config_to_dict(model.config))


def load_model(folder: Path) -> ReferringSegmentor:
    """The finished network of a run, in evaluation mode on the CPU.

    Raises:
        DataError: The run is not finished, or its files do not fit.
    """
    path = folder / "model" / "config.json"
    if not path.is_file():
        raise DataError(f"{folder}: holds no finished model; resume the training first")
    config = without_pretrained(config_from_dict(SegmentorConfig, read_json(path), str(path)))
    model = build_segmentor(config)
    load_pretrained(model, folder / "model" / "model.safetensors", tuple(p for p in PARTS if _has(model, p)))
    return model.eval()


def _has(model: torch.nn.Module, part: str) -> bool:
    return any(name.startswith(f"{part}.") for name in model.state_dict())


def without_pretrained(config: SegmentorConfig) -> SegmentorConfig:
    """The same network without reading any pretrained file (its weights come from elsewhere)."""
    return dataclasses.replace(
        config,
        weights=None,
        vision=dataclasses.replace(config.vision, weights=None),
        text=dataclasses.replace(config.text, weights=None),
    )
