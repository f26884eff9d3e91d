"""The files of a run folder that are not the log: settings, split, exported network, end mark.

config.json   written first; a folder belongs to one configuration
split.json    labelled image ids and counts
checkpoints/  see `stage2_train.checkpoint`
model/        the finished network: model.safetensors, config.json, tokenizer and model card
done.json     written last
"""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared.code_version import code_version
from shared.config import apply_overrides, config_from_dict, config_to_dict
from shared.errors import DataError
from shared.json_files import read_json, write_json
from shared.refer import ReferringDataset
from shared.store.find import find_stores
from shared.store.layout import read_header
from stage2_train.checkpoint import list_checkpoints, load_object
from stage2_train.config import TrainConfig
from stage2_train.data import Split
from stage2_train.hub_models import tower_names
from stage2_train.methods import METHODS
from stage2_train.methods.base import Method
from stage2_train.segmentor import CONFIG_NAME, WEIGHTS_NAME, ReferringSegmentor


def run_record(
    config: TrainConfig,
    recipe: str,
    overrides: Sequence[str],
    store: Mapping[str, str] | None,
    data_fingerprint: str | None,
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
        "data_fingerprint": data_fingerprint,
        "store": dict(store) if store else None,
        "code": code_version(("shared", "stage2_train")),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "config": config_to_dict(config),
    }


def require_same_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse a folder that belongs to another configuration.

    What is not part of the method (`runtime`, where data and store lie, number of processes, versions) may differ.

    Raises:
        DataError: A setting, or the content of data or store, differs; the first one is named.
    """
    path = folder / "config.json"
    old = read_json(path)
    differing = _first_difference(identity_of(old), identity_of(record))
    if differing:
        raise DataError(f"{path}: belongs to another run ({differing}); choose another folder")


def note_moved_data(folder: Path, root: str, data_fingerprint: str) -> None:
    """Let `config.json` say where the data set lies now; not if it lies where it did, or has other annotations."""
    record = read_json(folder / "config.json")
    if record["config"]["data"]["root"] != root and record.get("data_fingerprint") == data_fingerprint:
        record["config"]["data"]["root"] = root
        write_json(folder / "config.json", record)


def split_record(config: TrainConfig, split: Split, dataset: ReferringDataset) -> dict[str, Any]:
    """The content of `split.json`; `masks` is the hash of those that are learnt from."""
    return {
        "fraction": config.fraction,
        "seed": config.split_seed,
        "num_train_images": len(dataset.train_image_ids()),
        "weak_label": config.weak_label,
        **split.summary(),
        "masks": dataset.masks_hash([sample for ref in split.labelled for sample in ref]),
    }


def require_same_split(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse a folder whose run was given other labels: masks were drawn, corrected or taken away since it began.

    Raises:
        DataError: Another labelled or unlabelled part; the first difference is named.
    """
    path = folder / "split.json"
    old = read_json(path)
    counts = [name for name in record if name != "image_ids"]  # the ids last: a long list says little
    counts = [name for name in counts if name in old]  # a run of an older code says less
    differing = _first_difference({n: old.get(n) for n in counts}, {n: record[n] for n in counts})
    if differing or old.get("image_ids") != record["image_ids"]:
        raise DataError(
            f"{path}: the data carry other labels than when this run began ({differing or 'other images'}); choose "
            "another folder"
        )


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's record says of its method: settings, store and annotations, and no place."""
    config = _filled(record["config"])
    config = {name: value for name, value in config.items() if name not in ("runtime", "store", "cache_root")}
    if "data" in config:
        config["data"] = {name: value for name, value in config["data"].items() if name != "root"}
    store = record.get("store") or {}
    return {
        "config": config,
        "store": store.get("fingerprint"),
        "annotations": record.get("data_fingerprint"),
    }


def codes_of(runs: Sequence[Path]) -> dict[str, int]:
    """How many of the runs were begun by each state of the code; those that do not say are left out."""
    codes = (read_json(run / "config.json").get("code", {}).get("sources") for run in runs)
    return dict(Counter(code for code in codes if code))


def _filled(config: dict[str, Any]) -> dict[str, Any]:
    """Settings as today's code would write them: a field that was not there yet had its default."""
    try:
        return config_to_dict(config_from_dict(TrainConfig, config, "config.json"))
    except DataError:  # of a code that is too old or too new: compared as it is
        return config


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            found = _first_difference(old.get(name), new.get(name), f"{where}.{name}" if where else name)
            if found:
                return found
        return ""
    return "" if old == new else f"{where.removeprefix('config.')} is {old!r} there, {new!r} now"


def read_run_config(folder: Path, root: str = "") -> TrainConfig:
    """The configuration of a run folder.

    Args:
        folder: The run's.
        root: Where its data set lies now; "": where it lay.

    Raises:
        DataError: No `config.json`, or one that no training wrote.
    """
    path = folder / "config.json"
    values = read_json(path).get("config")
    if not isinstance(values, dict):
        raise DataError(f"{path}: has no 'config' object; not a run's folder")
    config = config_from_dict(TrainConfig, values, str(path))
    return replace(config, data=replace(config.data, root=root)) if root else config


def with_recorded_pins(folder: Path, config: TrainConfig) -> TrainConfig:
    """The configuration with towers and tokenizer named as a begun run names them.

    A batch job holds a repository at its commit, a run by hand need not: one may go on with the other. Two commits are
    two networks.
    """
    if not (folder / "config.json").is_file():
        return config
    recorded = read_json(folder / "config.json").get("config")
    changes = []
    for field, name in tower_names(config.segmentor).items():
        own: Any = recorded
        for part in field.split("."):
            own = own.get(part) if isinstance(own, dict) else None
        if not isinstance(own, str) or name is None:
            continue
        (repository, own_pin, _), (same, pin, _) = own.partition("@"), name.partition("@")
        if repository == same and own_pin != pin:
            changes.append(f"{field}={own}")
    return apply_overrides(config, changes)


def with_own_store(folder: Path, config: TrainConfig) -> TrainConfig:
    """The configuration with the store named that a begun run reads, wherever that lies now, if it can be found.

    Another store that fits the data as well may have been made since. A store that is named and there is kept.
    """
    if (config.store and Path(config.store).exists()) or not (folder / "config.json").is_file():
        return config
    own = read_json(folder / "config.json").get("store") or {}
    found = place_of_store(own, config.cache_root)
    return replace(config, store=str(found)) if found else config


def place_of_store(recorded: Mapping[str, str], cache_root: str | Path) -> Path | None:
    """Where a run's store lies: where it lay, else under `cache_root` by whatever name; None if nowhere."""
    if not recorded.get("path"):
        return None

    def is_it(path: Path) -> bool:
        try:
            return read_header(path).fingerprint == recorded.get("fingerprint")
        except DataError:
            return False

    recorded_path = Path(recorded["path"])
    return recorded_path if is_it(recorded_path) else next(filter(is_it, find_stores(cache_root)), None)


def export_model(model: ReferringSegmentor, folder: Path) -> None:
    """Write `model/`, the finished network as a folder of its own."""
    model.save_pretrained(folder / "model")


def load_model(folder: Path) -> ReferringSegmentor:
    """The finished network of a run, in evaluation mode on the CPU.

    Raises:
        DataError: The run is not finished, or its files do not fit.
    """
    if not (folder / "model" / CONFIG_NAME).is_file():
        raise DataError(f"{folder}: holds no finished model; resume the training first")
    return ReferringSegmentor.from_pretrained(folder / "model")


def model_folder(path: Path) -> Path:
    """The model's folder of a run, or the path itself where it is one.

    Raises:
        DataError: It is neither.
    """
    for folder in (path / "model", path):
        if (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file():
            return folder
    raise DataError(f"{path}: neither a finished run nor a model's folder ({CONFIG_NAME}, {WEIGHTS_NAME})")


def restore_method(folder: Path, config: TrainConfig) -> Method:
    """The method of a run with what it learnt on its own, from the last checkpoint.

    Raises:
        DataError: A method that learns something, and no checkpoint.
    """
    method = METHODS[config.method](config)
    if not method.state_dict():
        return method
    found = list_checkpoints(folder / "checkpoints")
    if not found:
        raise DataError(
            f"{folder / 'checkpoints'}: no checkpoint, so the state of method {config.method} is not known"
        )
    method.load_state_dict(load_object(found[-1], "method"))
    return method
