"""Scores of a finished run on one split: which data and which prior they are of, and where they are filed.

What is scored, and how, is `stage2_train.scoring`'s.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.datasets import load_dataset
from shared.errors import DataError
from shared.json_files import read_json, write_json
from shared.refer import ReferringDataset
from shared.split_names import is_split_name
from shared.store.publish import disk_errors, publish_file
from shared.store.reader import PriorStore
from shared.types import Sample
from stage2_train.config import TrainConfig
from stage2_train.model_card import write_card
from stage2_train.prior_source import StorePriors
from stage2_train.processes import start_accelerator
from stage2_train.run_files import load_model, place_of_store, read_run_config, require_data_there
from stage2_train.run_identity import note_moved_data
from stage2_train.scoring import field_rule, score_samples, spaced, summarise
from stage2_train.seen_images import shared_with_train
from stage2_train.segmentor import ReferringSegmentor
from stage2_train.split import scorable
from stage2_train.store_choice import choose_store, open_priors
from stage2_train.text import Tokenizer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def evaluate_run(run: str | Path, split: str, **options: Any) -> dict[str, Any]:
    """Score a finished run on one split; options, result and errors as of `evaluate_splits`."""
    return evaluate_splits(run, (split,), **options)[split]


def evaluate_splits(
    run: str | Path,
    splits: Sequence[str],
    *,
    store: str = "",
    root: str = "",
    dataset_name: str = "",
    split_by: str = "",
    data_name: str = "",
    batch: int = 64,
    workers: int = 0,
    limit: int = 0,
    self_guided: bool = False,
    with_prior: bool = False,
    write: bool = True,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Score a finished run and write `eval/<split>.json` and `.jsonl`; `<data_name>-<split>` on other data.

    Network and data set are read once, and everything that can be refused is before the first split is scored.

    Args:
        run: Run folder.
        splits: Splits of its data set.
        store: Store for the prior's own score; "" takes the run's, or the one that fits its data.
        root: Where the data set lies now; "": where it lay. Noted in the run if the annotations are those of before.
        dataset_name: Another data set under that root, for example `refcoco+`; "": the run's.
        split_by: Its split; "": the run's.
        data_name: What to call other data than the run's, whose scores are not those of its own splits; "":
            `dataset_name`.
        batch: Sentences per pass.
        workers: Processes that read images; 0 reads in a thread.
        limit: Evenly spaced sentences to score (0 = all).
        self_guided: Also score a second pass with the first one's prediction as field.
        with_prior: Also score a second pass with the frozen prior in its field: another method.
        write: Whether to write the files.
        quiet: No progress line.

    Returns:
        The content of each split's JSON file, on every process.

    Raises:
        DataError: An unfinished run, data that are gone, an unknown split, `self_guided` or `with_prior` for a network
            without a field, `with_prior` without a store that holds the split, or other annotations than the run's
            without a name.
    """
    run = Path(run)
    config = read_run_config(run, root)
    other = {key: value for key, value in (("dataset", dataset_name), ("split_by", split_by)) if value}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **other))
    require_data_there(run, config)
    data_name = data_name or dataset_name
    model = load_model(run)
    if self_guided or with_prior:
        _require_field(run, config, model, "self-guided pass" if self_guided else "pass with a prior")
    dataset = load_dataset(config.data)
    _require_own_data(run, config, dataset, data_name)
    if wrong := [split for split in splits if not is_split_name(split)]:
        raise DataError(f"split {wrong[0]!r}: scores are filed under this name, which no file can have")
    samples_of = {split: spaced(scorable(dataset, split), limit) for split in splits}
    priors = {
        split: _prior_for(run, config, dataset, samples, store) for split, samples in samples_of.items()
    }
    for split, (prior, note) in priors.items():
        if with_prior and prior is None:
            raise DataError(f"{run}: no pass with a prior on {split}: {note}")
    accelerator = start_accelerator()
    model, tokenise = model.to(accelerator.device), Tokenizer(model.config)
    results = {}
    for split, samples in samples_of.items():
        prior, note = priors[split]
        filed = f"{data_name}-{split}" if data_name else split
        rows = score_samples(
            accelerator,
            model,
            tokenise,
            dataset,
            samples,
            config.size_hw,
            prior=prior,
            batch=batch,
            workers=workers,
            self_guided=self_guided,
            with_prior=field_rule(config) if with_prior else None,
            keep_masks=write,
            quiet=quiet or not accelerator.is_main_process,
        )
        results[split] = {
            "split": filed,
            "data": {
                "name": data_name,
                "split": split,
                **dataclasses.asdict(config.data),
                "annotations": dataset.fingerprint(),
            },
            "shared_with_train": shared_with_train(run, dataset, config.data.root, samples),
            **summarise(rows),
            "num": len(rows),
            "masks": dataset.masks_hash(samples),
            "resolution": list(config.size_hw),
            "limit": limit,
            "prior_note": note,
            "method": config.method,
        }
        if write and accelerator.is_main_process:
            note_moved_data(run, config.data.root, dataset.fingerprint())
            _write(run / "eval", filed, results[split], rows)
            write_card(run)
    accelerator.wait_for_everyone()
    return results


def _require_field(run: Path, config: TrainConfig, model: ReferringSegmentor, wanted_for: str) -> None:
    """Refuse a further pass of a network that takes no field, or has not learnt what to make of one."""
    if model.sesm is None or not config.trains_field:
        why = "was built without sesm" if model.sesm is None else "never saw a field in training"
        raise DataError(f"{run}: its network {why}: it has no {wanted_for}")


def _require_own_data(run: Path, config: TrainConfig, dataset: ReferringDataset, data_name: str) -> None:
    """Refuse to file scores of other annotations under the run's own splits."""
    trained_on = read_json(run / "config.json").get("data_fingerprint")
    if data_name and not _NAME.fullmatch(data_name):
        raise DataError(
            f"data name {data_name!r}: letters, digits and _.+- alone, it becomes part of a file name"
        )
    if not data_name and trained_on and trained_on != dataset.fingerprint():
        raise DataError(
            f"{run}: was trained on other annotations than those in {config.data.root} ({config.data.dataset}): its "
            "scores there are no scores of its own splits, and images it has learnt from may be among them. "
            "--data-name NAME files them under that name"
        )


def is_scored(run: Path, split: str, masks: str) -> bool:
    """Whether a run was scored on a split with these masks (`masks_hash`); scores of an older code do not say."""
    file = run / "eval" / f"{split}.json"
    return file.is_file() and read_json(file).get("masks", masks) == masks


def _prior_for(
    run: Path, config: TrainConfig, dataset: ReferringDataset, samples: Sequence[Sample], store: str
) -> tuple[StorePriors | None, str]:
    """The store for the prior's own score, or None and why; a store named by the caller must fit.

    Where the run's own store lacks these samples, the one that is found for their data will do, if it was made alike.
    """
    if store:
        return open_priors(Path(store), config, dataset, samples), f"from {store}"
    own = read_json(run / "config.json").get("store") or {}
    recorded = place_of_store(own, config.cache_root) or own.get("path")
    try:
        path = Path(recorded) if recorded else choose_store(config, dataset)
        return open_priors(path, config, dataset, samples), f"from {path}"
    except DataError as error:
        if not recorded:
            return None, f"no prior score: {error}"
        if found := _store_alike(recorded, config, dataset, samples):
            return found, f"from {found.store.path}"
        return None, f"no prior score: {error}; --store PATH names another store"


def _store_alike(
    path: str | Path, config: TrainConfig, dataset: ReferringDataset, samples: Sequence[Sample]
) -> StorePriors | None:
    """Another store than the run's, made alike for these data; None if there is none with these samples."""
    try:
        found = choose_store(dataclasses.replace(config, store=""), dataset, PriorStore(path))
        return open_priors(found, config, dataset, samples)
    except DataError:
        return None


def _write(folder: Path, split: str, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Sentences first, the summary last."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with disk_errors(folder, "the scores", "the network is safe"):
        folder.mkdir(parents=True, exist_ok=True)
        publish_file(folder / f"{split}.jsonl", lines.encode())
        write_json(folder / f"{split}.json", result)


def text_of_scores(run: Path, scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per split, resolution and scorer: the network, its further passes, the frozen prior alone."""
    names = ("oiou", "miou", "pr@0.5", "pr@0.6", "pr@0.7", "pr@0.8", "pr@0.9")
    lines = [str(run), f"{'split':<7}{'size':<10}{'scored':<13}" + "".join(f"{name:>8}" for name in names)]
    for split, result in scores.items():
        size = "x".join(map(str, result["resolution"]))
        scorers = {
            "network": result,
            "self-guided": result.get("self_guided"),
            "with prior": result.get("with_prior"),
            "frozen prior": result.get("prior"),
        }
        for scorer, found in scorers.items():
            for frame, shown in (("original", "original"), ("model", size)):
                if found:
                    cells = "".join(f"{found[frame][name]:>8.4f}" for name in names)
                    lines.append(f"{split:<7}{shown:<10}{scorer:<13}{cells}")
        if result.get("with_prior"):
            lines.append(
                f"{split:<7}with prior: another method, which needs the frozen model's answer to every sentence"
            )
        if not result.get("prior"):
            lines.append(f"{split:<7}{result['prior_note']}")
        if result["shared_with_train"] is None:
            lines.append(
                f"{split:<7}not known how many sentences are of images that were trained on: the run's own data are "
                "gone or have changed"
            )
        elif result["shared_with_train"]:
            lines.append(
                f"{split:<7}{result['shared_with_train']} of {result['num']} sentences are of images that were "
                "trained on"
            )
        if result["limit"]:
            lines.append(f"{split:<7}at most {result['limit']} evenly spaced sentences; nothing written")
    return "\n".join(lines)
