"""Where the gallery gets images, true masks and priors: the data sets and the stores the runs name.

Each part may be gone when a report is written. It is then named once in `missing`, with a count if there are many of a
kind, and left out of the page.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import DataError
from shared.types import STATUS_BY_CODE
from stage2_train.report.data_source import DataSource, Faults
from stage2_train.report.run_data import EvalData, RunData
from stage2_train.run_files import place_of_store

if TYPE_CHECKING:
    from stage2_train.report.pseudo_labels import Taught


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What the multimodal model said about one sample."""

    soft_GG: np.ndarray | None
    """Probability x 255, u8 [G, G] over the whole image; None where the answer held no usable box."""
    status: str
    """What became of the answer."""
    answer: str
    """Its raw text."""
    confidence: float | None
    """Mean log-probability of the coordinate tokens."""


class Sources:
    """Opens the data sets and the stores of the runs on first use; each data set for itself.

    Two data sets may have images and samples of one name.
    """

    def __init__(self, runs: Sequence[RunData]) -> None:
        """Nothing is opened but what says which store is which."""
        self._faults = Faults()
        self._data: dict[str, DataSource] = {}
        self._readers: dict[Path, Callable[[str], Proposal | None] | None] = {}
        self.stores = {run.name: path for run in runs if (path := store_of(run))}
        """Store path by run name."""
        for run in runs:
            if run.store and run.name not in self.stores:
                why = f"{run.store.get('path')} is gone, damaged, or another one by now"
                self._faults.add("prior store", why)

    @property
    def missing(self) -> list[str]:
        """One line for each kind of part that could not be read, in order of discovery: the first, how many more."""
        return self._faults.lines

    def trained_on(self, run: RunData) -> DataSource:
        """The data set that a run was trained on."""
        return self._source(run.data, run.config.get("data_fingerprint"))

    def scored_on(self, run: RunData, data: EvalData) -> DataSource | None:
        """The data set of scored sentences: the run's own unless their file names another one.

        Returns:
            None if other annotations lie there by now: an id may be that of another pair.
        """
        scored = data.scored_data
        place = _place(scored)
        own = not (place.get("root") and place.get("dataset")) or place == _place(run.data)
        source = self.trained_on(run) if own else self._source(place, None)
        annotations = scored.get("annotations")
        if annotations is not None and source.has_other_annotations(annotations):
            self._faults.add(
                f"sentences of {data.split}", f"they were scored on other data than {source.root} holds"
            )
            return None
        return source

    def _source(self, data: Mapping[str, Any], fingerprint: Any) -> DataSource:
        place = _place(data)
        key = json.dumps([place, fingerprint], sort_keys=True)
        return self._data.setdefault(key, DataSource(place, fingerprint, self._faults))

    def prior(self, run_name: str, sample_id: str) -> Proposal | None:
        """What the store of a run holds for a sample, or None if the store or the row is gone."""
        path = self.stores.get(run_name)
        if path is None:
            return None
        if path not in self._readers:
            self._readers[path] = self._open_store(path)
        reader = self._readers[path]
        return None if reader is None else reader(sample_id)

    def taught(self, run: RunData, most: int) -> list["Taught"]:
        """The pseudo-labels of a run's last micro-batch, or none if they cannot be made again."""
        if run.method == "supervised" or not run.done:
            return []
        from stage2_train.report.pseudo_labels import taught_by

        try:
            return taught_by(run.path, most)
        except (DataError, OSError) as error:
            self._faults.add(f"what {run.name} was taught from", error)
            return []

    def _open_store(self, path: Path) -> Callable[[str], Proposal | None] | None:
        """A function from sample id to proposal, or None if the store cannot be read."""
        from shared.store.reader import PriorStore

        try:
            store = PriorStore(path)
            known = set(store.sample_ids)
        except (DataError, OSError) as error:
            self._faults.add("prior store", error)
            return None

        def read(sample_id: str) -> Proposal | None:
            if sample_id not in known:
                return None
            try:
                return _read_proposal(store, store.row_of(sample_id))
            except (DataError, OSError) as error:
                self._faults.add("prior store", error)
                return None

        return read


def _place(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in ("root", "dataset", "split_by") if name in data}


def _read_proposal(store: Any, row: int) -> Proposal:
    status = STATUS_BY_CODE.get(int(store.batch("status", [row])[0]))
    confidence = float(store.batch("confidence", [row])[0])
    return Proposal(
        soft_GG=np.asarray(store.batch("proposal", [row])[0])
        if status is not None and status.has_prior
        else None,
        status="unknown" if status is None else status.value,
        answer=store.texts("raw_text", [row])[0],
        confidence=confidence if np.isfinite(confidence) else None,
    )


def store_of(run: RunData) -> Path | None:
    """Where the store that a run read lies by now; None without one, or if it is found nowhere."""
    config = run.config.get("config")
    cache_root = config.get("cache_root") if isinstance(config, dict) else None
    return place_of_store(run.store, cache_root or Path(str(run.store.get("path"))).parent)
