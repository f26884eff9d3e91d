"""Which run a folder holds: `config.json`, `split.json`, and whether a start belongs to them.

config.json  recipe, settings, versions, hash of the code; fingerprints of the annotations and of the store, hashes of
             pretrained files
split.json   labelled image ids, counts, and the hash of the masks that are learnt from

A run is known by its settings and by the content of what it reads. Data, store and weights may be moved between starts:
where they lie is noted, and is no part of what the run is. Neither is the collapse alarm, which decides nothing but
whether a run stops.
"""

import copy
import platform
from collections.abc import Mapping, Sequence, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared.config import apply_overrides, config_from_dict, config_to_dict
from shared.errors import DataError
from shared.json_files import read_json, write_json
from shared.model_files import hash_files, model_files
from shared.refer import ReferringDataset
from stage2_train.config import TrainConfig
from stage2_train.hub_models import pretrained_names, tower_names
from stage2_train.run_code import own_code
from stage2_train.segmentor_config import EMBEDDED, EMBEDDED_FOLDER, SegmentorConfig
from stage2_train.split import Split

_HASHES = ("image_ids", "hash", "masks")
"""What `split.json` holds of labelled images and masks: too long for a message."""


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
        "pretrained": hash_pretrained(config.segmentor),
        "code": own_code(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "config": config_to_dict(config),
    }


def hash_pretrained(config: SegmentorConfig) -> dict[str, str]:
    """Hashes of the pretrained files and folders that a network is read from, by config field.

    Left out are repositories of the Hub (a commit names them), and what is not there.
    """
    found = {}
    for field, name in pretrained_names(config).items():
        if name is None:
            continue
        place = EMBEDDED_FOLDER if name == EMBEDDED else Path(name)
        if place.is_dir():
            found[field] = hash_files(model_files(place))
        elif place.is_file():
            found[field] = hash_files([place])
    return found


def difference_of_run(folder: Path, record: Mapping[str, Any]) -> str:
    """What tells the run that a folder holds from one of this record, in words; "" if they are the same run.

    What is not part of the method (`runtime`, `alarm`, where data, store and weights lie, number of processes,
    versions) may differ. Pretrained files that cannot be found any more are compared by name.

    Raises:
        DataError: The folder's `config.json` cannot be read, or was written by no training.
    """
    old = read_json(folder / "config.json")
    if not isinstance(old.get("config"), dict):
        raise DataError(f"{folder / 'config.json'}: has no 'config' object; not a run's folder")
    both = set(old.get("pretrained") or {}) & set(record.get("pretrained") or {})
    was, now = identity_of(_hashed(old, both)), identity_of(_hashed(record, both))
    differing = _first_difference({**was, "annotations": None}, {**now, "annotations": None})
    if not differing and was["annotations"] != now["annotations"]:
        return "the data have other annotations now"
    return differing


def require_same_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse a folder that belongs to another configuration.

    Raises:
        DataError: A setting, or the content of data, store or weights, differs (`difference_of_run`); the first one is
            named.
    """
    if differing := difference_of_run(folder, record):
        raise DataError(
            f"{folder / 'config.json'}: belongs to another run ({differing}); choose another folder"
        )


def _hashed(record: Mapping[str, Any], fields: Set[str]) -> dict[str, Any]:
    """The record with the hashes of these pretrained files alone."""
    known = record.get("pretrained") or {}
    return {**record, "pretrained": {field: known[field] for field in fields}}


def note_moved_data(folder: Path, root: str, data_fingerprint: str) -> None:
    """Let `config.json` say where the data set lies now; not if it lies where it did, or has other annotations."""
    record = read_json(folder / "config.json")
    if record.get("data_fingerprint") == data_fingerprint:
        _note(folder, record, {"data.root": root})


def note_moved_weights(folder: Path, now: Mapping[str, Any]) -> None:
    """Let `config.json` say where pretrained files lie now, after `require_same_run` found the same ones."""
    record = read_json(folder / "config.json")
    both = set(record.get("pretrained") or {}) & set(now["pretrained"])
    _note(folder, record, {field: str(_get(now["config"], field)) for field in both})


def note_new_start(folder: Path, now: Mapping[str, Any]) -> None:
    """Let `config.json` say by what a run is trained that starts anew, after `require_same_run` found the same one."""
    record = read_json(folder / "config.json")
    trained_by = {name: now[name] for name in ("num_processes", "code", "versions")}
    if {**record, **trained_by} != record:
        write_json(folder / "config.json", {**record, **trained_by})


def _note(folder: Path, record: dict[str, Any], places: Mapping[str, str]) -> None:
    """Write the record with other places, if they are others."""
    moved = {field: place for field, place in places.items() if _get(record["config"], field) != place}
    for field, place in moved.items():
        _set(record["config"], field, place)
    if moved:
        write_json(folder / "config.json", record)


def _get(config: Any, field: str) -> Any:
    """What `a.b` names in nested settings; None if nothing."""
    for name in field.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _set(config: Any, field: str, value: str) -> None:
    """Let `a.b` be another value, where there is an `a`."""
    group, _, name = field.rpartition(".")
    within = _get(config, group)
    if isinstance(within, dict):
        within[name] = value


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's record says of its method: settings, store, weights and annotations, and no place."""
    config = copy.deepcopy(_filled(record["config"]))
    for name in ("runtime", "alarm", "store", "cache_root"):
        config.pop(name, None)
    if isinstance(config.get("data"), dict):
        config["data"].pop("root", None)
    for field, found in (record.get("pretrained") or {}).items():
        _set(config, field, f"files {found}")
    store = record.get("store") or {}
    return {
        "config": config,
        "store": store.get("fingerprint"),
        "annotations": record.get("data_fingerprint"),
    }


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


def difference_of_split(folder: Path, record: Mapping[str, Any]) -> str:
    """In what other labels than these were given to the run of a folder, in words; "" if they are the same.

    Raises:
        DataError: The folder's `split.json` cannot be read.
    """
    old = read_json(folder / "split.json")
    counts = [
        name for name in record if name not in _HASHES and name in old
    ]  # a run of an older code says less
    differing = _first_difference({n: old[n] for n in counts}, {n: record[n] for n in counts})
    if differing:
        return differing
    if old.get("image_ids") != record["image_ids"]:
        return "other images are labelled"
    return "masks have been redrawn" if old.get("masks", record["masks"]) != record["masks"] else ""


def require_same_split(
    folder: Path, record: Mapping[str, Any], remedy: str = "choose another folder"
) -> None:
    """Refuse a folder whose run was given other labels: masks were drawn, corrected or taken away since it began.

    Args:
        folder: The run.
        record: `split_record` of the data as they are.
        remedy: What helps.

    Raises:
        DataError: Another labelled or unlabelled part (`difference_of_split`); the first difference is named.
    """
    if differing := difference_of_split(folder, record):
        raise DataError(
            f"{folder / 'split.json'}: the data carry other labels than when this run began ({differing}); {remedy}"
        )


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
        own = _get(recorded, field)
        if not isinstance(own, str) or name is None:
            continue
        (repository, own_pin, _), (same, pin, _) = own.partition("@"), name.partition("@")
        if repository == same and own_pin != pin:
            changes.append(f"{field}={own}")
    return apply_overrides(config, changes)
