"""What others read in a run folder: its configuration, its store, what it learnt.

config.json, split.json  written first: see `stage2_train.run_identity`
checkpoints/             see `stage2_train.checkpoint`
model/                   the finished network: model.safetensors, config.json, tokenizer and model card
done.json                written last
failed.json              why the last start ended before that, and after which step; removed by the next one
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from shared.config import config_from_dict
from shared.datasets import load_dataset
from shared.errors import DataError
from shared.json_files import read_json
from shared.store.find import find_stores
from shared.store.layout import read_header
from stage2_train.checkpoint import list_checkpoints, load_object, load_weights
from stage2_train.config import TrainConfig
from stage2_train.inputs import Inputs, open_inputs, open_split
from stage2_train.methods import METHODS
from stage2_train.methods.base import Method
from stage2_train.networks import Networks
from stage2_train.run_identity import require_same_run, require_same_split, run_record, split_record
from stage2_train.segmentor import CONFIG_NAME, WEIGHTS_NAME, ReferringSegmentor

GIVE_BACK = "give the old data back, or train again"
"""What helps where data of a finished run have changed."""

_OWN_STORE_GONE = "the store that {run} was trained with is gone; `l2l export-labels --store PATH` names one"


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


def require_data_there(folder: Path, config: TrainConfig) -> None:
    """Refuse a run whose data set lies elsewhere by now; one line says how to say where.

    Args:
        folder: The run.
        config: Its configuration (`read_run_config`).

    Raises:
        DataError: There is nothing at `data.root`.
    """
    if not Path(config.data.root).exists():
        raise DataError(f"{config.data.root}: not there; --root says where the data of {folder} lie now")


def with_own_store(folder: Path, config: TrainConfig) -> TrainConfig:
    """The configuration with the store named that a begun run reads, wherever that lies now, if it can be found.

    Another store that fits the data as well may have been made since. A store that is named and there is kept.
    """
    if (config.store and Path(config.store).exists()) or not (folder / "config.json").is_file():
        return config
    own = read_json(folder / "config.json").get("store") or {}
    found = place_of_store(own, config.cache_root)
    return replace(config, store=str(found)) if found else config


def open_own_inputs(folder: Path, config: TrainConfig, *, store: str = "", quiet: bool = False) -> Inputs:
    """What a run read, opened again, wherever data and store lie by now.

    Args:
        folder: The run.
        config: Its configuration (`read_run_config`).
        store: Where its store lies now, or another one to read instead; "": where it lay, or below `cache_root`.
        quiet: No progress bar.

    Raises:
        DataError: Data or store that are gone, another store in its place unless that is named, or annotations, images
            or labels that are others than the run's.
    """
    config = replace(config, store=store) if store else with_own_store(folder, config)
    if not store and config.uses_store and config.store and not Path(config.store).exists():
        raise DataError(f"{config.store}: {_OWN_STORE_GONE.format(run=folder)}")
    inputs = open_inputs(config, quiet=quiet)
    record = read_json(folder / "config.json")
    if not store:
        _require_own_store(folder, record, inputs)
    if record.get("data_fingerprint") not in (None, inputs.dataset.fingerprint()):
        raise DataError(
            f"{config.data.root}: has other annotations than {folder} was trained on; {GIVE_BACK}"
        )
    require_same_split(folder, split_record(config, inputs.split, inputs.dataset), GIVE_BACK)
    return inputs


def _require_own_store(folder: Path, record: Mapping[str, Any], inputs: Inputs) -> None:
    """Refuse another store than the run's, found where its own lay or because its own is gone."""
    own = record.get("store")
    if own and inputs.store and inputs.store["fingerprint"] != own.get("fingerprint"):
        raise DataError(
            f"{own.get('path')}: {_OWN_STORE_GONE.format(run=folder)}; {inputs.store['path']} is another one"
        )


def has_ended(folder: Path) -> bool:
    """Whether a folder holds a run that was trained to its end."""
    return (folder / "config.json").is_file() and (folder / "done.json").is_file()


def require_resume(folder: Path, *, resume: bool) -> None:
    """Refuse a folder with an unfinished run, unless it is to be gone on with.

    Raises:
        DataError: `resume` is False.
    """
    if not resume:
        raise DataError(
            f"{folder}: holds an unfinished run; --resume goes on with it, or choose another folder"
        )


def require_same_start(folder: Path, config: TrainConfig, inputs: Inputs) -> None:
    """Refuse an unfinished run that began with other settings, data, store, weights or labels than these.

    Args:
        folder: The run.
        config: What is asked for, with recorded pins (`run_identity.with_recorded_pins`).
        inputs: What it reads.

    Raises:
        DataError: The first difference.
    """
    require_same_run(folder, run_record(config, "", (), inputs.store, inputs.dataset.fingerprint(), 1))
    require_same_split(folder, split_record(config, inputs.split, inputs.dataset))


def require_ended_as(folder: Path, config: TrainConfig, *, store_comes: bool = False) -> None:
    """Refuse a run that has ended with other settings, another store or other labels than these.

    Data that are gone say nothing, and neither does the store that it read, if that is gone.

    Args:
        folder: The run.
        config: What is asked for, with recorded pins (`run_identity.with_recorded_pins`).
        store_comes: `config.store` is still being written: nobody knows whether it is the run's.

    Raises:
        DataError: The first difference, or a store that is named and not there.
    """
    recorded = read_json(folder / "config.json")
    store = recorded.get("store")
    if config.uses_store and config.store and not store_comes:
        store = _named_store(config.store, store or {})
    require_same_run(folder, run_record(config, "", (), store, recorded.get("data_fingerprint"), 1))
    try:
        dataset = load_dataset(config.data)
    except DataError:
        return
    require_same_split(folder, split_record(config, open_split(config, dataset), dataset))


def _named_store(name: str, own: Mapping[str, str]) -> Mapping[str, str]:
    """Path and fingerprint of a store that is named; the run's `own`, under its recorded name, may be gone by now."""
    if name == own.get("path") and not Path(name).exists():
        return own
    return {"path": name, "fingerprint": read_header(name).fingerprint}


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
    """Write `model/`, the finished network as a folder of its own.

    Raises:
        DataError: The disk is full; the run's checkpoint has all of it.
    """
    try:
        model.save_pretrained(folder / "model")
    except SafetensorError as error:  # its words for a full disk
        raise DataError(
            f"{folder / 'model'}: cannot write the network: {error}; the last checkpoint is safe: make room and run "
            "the same command again with --resume"
        ) from error


def load_model(folder: Path) -> ReferringSegmentor:
    """The finished network of a run, in evaluation mode on the CPU.

    Raises:
        DataError: The run is not finished, or its files do not fit.
    """
    if not (folder / "model" / CONFIG_NAME).is_file():
        raise DataError(f"{folder}: holds no finished model; resume the training first")
    return ReferringSegmentor.from_pretrained(folder / "model")


def load_networks(folder: Path, config: TrainConfig, device: torch.device | str = "cpu") -> Networks:
    """The networks of a finished run as its method sees them: the finished one, and the teacher where that is another.

    Args:
        folder: The run.
        config: Its configuration.
        device: Where they are wanted.

    Raises:
        DataError: The run is not finished, or its teacher, which lies in the last checkpoint alone, is gone.
    """
    student = load_model(folder)
    teacher = None
    if config.ema.teacher and not config.ema.export:
        teacher = copy.deepcopy(student)
        teacher.load_state_dict(_average(folder / "checkpoints"))
        teacher.to(device)
    return Networks(student.to(device), teacher, config.weak_eval)


def _average(checkpoints: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of the last checkpoint."""
    found = list_checkpoints(checkpoints)
    if not found or not (found[-1] / "ema.safetensors").is_file():
        raise DataError(
            f"{checkpoints}: the averaged teacher, which made the pseudo-labels, is gone (runtime.shrink_finished "
            "deletes it); with ema.export=false model/ holds the other network"
        )
    return load_weights(found[-1], "ema")


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
        DataError: A method that learns something, and no checkpoint, or one whose state is not of this code's method.
    """
    method = METHODS[config.method](config)
    if not method.state_dict():
        return method
    found = list_checkpoints(folder / "checkpoints")
    if not found:
        raise DataError(
            f"{folder / 'checkpoints'}: no checkpoint, so the state of method {config.method} is not known"
        )
    try:
        method.load_state_dict(load_object(found[-1], "method"))
    except (RuntimeError, KeyError, ValueError) as error:  # torch's words for other names, shapes or groups
        raise DataError(
            f"{found[-1]}: the state of method {config.method} is of another code: {error}"
        ) from error
    return method
