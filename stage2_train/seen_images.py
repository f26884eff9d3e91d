"""Whether a run has learnt from the images that it is scored on, whatever data set they are scored as."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shared.datasets import load_dataset
from shared.errors import DataError
from shared.json_files import read_json
from shared.refer import ReferringDataset
from shared.types import Sample
from stage2_train.run_files import read_run_config


def shared_with_train(
    run: Path, dataset: ReferringDataset, root: str, samples: Sequence[Sample]
) -> int | None:
    """How many samples are of an image of the train split that a run was given.

    An image is the same one if file name and pixels are; below one root the name is enough.

    Args:
        run: The run's folder.
        dataset: The data set that is scored.
        root: Where it lies; the run's own may have been moved there, too.
        samples: Those that are scored.

    Returns:
        Their number; None where the run's own annotations, or its images of these names, are gone or others by now.
    """
    try:
        own, own_root = _own_data(run, dataset, root)
        trained = {sample.file_name: sample for sample in own.samples("train")}
        shared: dict[str, bool] = {}
        for sample in samples:
            name = sample.file_name
            if name in trained and name not in shared:
                shared[name] = own_root == root or np.array_equal(
                    np.asarray(own.image(trained[name])), np.asarray(dataset.image(sample))
                )
    except DataError:
        return None
    return sum(shared.get(sample.file_name, False) for sample in samples)


def _own_data(run: Path, dataset: ReferringDataset, root: str) -> tuple[ReferringDataset, str]:
    """What a run was trained on, and where it lies: the data set at hand, or one below its root, or where it lay."""
    known = read_json(run / "config.json").get("data_fingerprint")
    if dataset.fingerprint() == known:
        return dataset, root
    own = read_run_config(run).data
    for place in (root, own.root):
        try:
            opened = load_dataset(replace(own, root=place))
        except DataError:
            continue
        if opened.fingerprint() == known:
            return opened, place
    raise DataError(f"{run}: its data are not in {own.root} any more")
