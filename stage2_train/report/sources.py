"""Where the gallery gets images, true masks and priors: the data set and the stores the runs name.

Each part may be gone when a report is written. It is then named once in `missing`, with a count if there are many of a
kind, and left out of the page.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.types import STATUS_BY_CODE, Sample
from stage2_train.report.run_data import EvalData, RunData
from stage2_train.run_files import place_of_store

if TYPE_CHECKING:
    from stage2_train.report.pseudo_labels import Taught


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What the large model said about one sample."""

    soft_GG: np.ndarray | None
    """Probability x 255, u8 [G, G] over the whole image; None where the answer held no usable box."""
    status: str
    """What became of the answer."""
    answer: str
    """Its raw text."""
    confidence: float | None
    """Mean log-probability of the coordinate tokens."""


@dataclass(kw_only=True)
class Sources:
    """Opens the data set and the stores on first use."""

    data: dict[str, Any]
    """`root`, `dataset` and `split_by` of the data set."""
    data_fingerprint: str | None = None
    """Of the annotations that the runs were made with; None where they do not say."""
    stores: dict[str, Path] = field(default_factory=dict)
    """Store path by run name."""

    def __post_init__(self) -> None:
        """Nothing is open yet."""
        self._faults: dict[str, dict[str, None]] = {}
        self._dataset: Any = None
        self._samples: dict[str, Sample] | None = None
        self._readers: dict[Path, Callable[[str], Proposal | None] | None] = {}

    @property
    def missing(self) -> list[str]:
        """One line for each kind of part that could not be read, in order of discovery: the first, how many more."""
        return [
            f"{kind}: {next(iter(found))}" + (f" ({len(found) - 1:,} more)" if len(found) > 1 else "")
            for kind, found in self._faults.items()
        ]

    def miss(self, kind: str, why: object) -> None:
        """Let `missing` name a part."""
        self._faults.setdefault(kind, {})[str(why)] = None

    def holds(self, data: EvalData) -> bool:
        """Whether scored sentences are of this data set: of another one, an id may be that of another pair."""
        self._open_dataset()
        scored = data.summary.get("data")
        annotations = scored.get("annotations") if isinstance(scored, dict) else None
        if self._dataset is None or annotations in (None, self._dataset.fingerprint()):
            return True
        self.miss(
            f"sentences of {data.split}", f"they were scored on other data than {self.data.get('root')} holds"
        )
        return False

    def sample(self, sample_id: str) -> Sample | None:
        """The sample, or None if the data set is gone or does not know it."""
        self._open_dataset()
        assert self._samples is not None
        return self._samples.get(sample_id)

    def image(self, sample: Sample) -> Image.Image | None:
        """RGB image at its original size, or None."""
        self._open_dataset()
        if self._dataset is None:
            return None
        try:
            return self._dataset.image(sample)
        except (DataError, OSError) as error:
            self.miss("images", error)
            return None

    def truth(self, sample: Sample) -> np.ndarray | None:
        """True mask, bool [H, W] at the original size, or None."""
        self._open_dataset()
        if self._dataset is None or not self._dataset.has_mask(sample):
            return None
        try:
            return np.asarray(self._dataset.mask(sample), dtype=bool)
        except (DataError, OSError) as error:
            self.miss("true masks", error)
            return None

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
            self.miss(f"what {run.name} was taught from", error)
            return []

    def _open_dataset(self) -> None:
        """Read the annotations, unless that was tried before."""
        if self._samples is not None:
            return
        from shared.config import DataConfig
        from shared.datasets import load_dataset

        self._samples = {}
        root, dataset = self.data.get("root"), self.data.get("dataset")
        if not root or not dataset:
            self.miss("data set", "the runs do not say which one they used")
            return
        try:
            split_by = str(self.data.get("split_by", "unc"))
            opened = load_dataset(DataConfig(root=str(root), dataset=str(dataset), split_by=split_by))
            if self.data_fingerprint not in (None, opened.fingerprint()):
                self.miss("data set", f"{root} has other annotations than the runs were scored with")
                return
            self._dataset = opened
            self._samples = {sample.sample_id: sample for sample in self._dataset.samples()}
        except (DataError, OSError) as error:
            self.miss("data set", error)

    def _open_store(self, path: Path) -> Callable[[str], Proposal | None] | None:
        """A function from sample id to proposal, or None if the store cannot be read."""
        from shared.store.reader import PriorStore

        try:
            store = PriorStore(path)
            known = set(store.sample_ids)
        except (DataError, OSError) as error:
            self.miss("prior store", error)
            return None

        def read(sample_id: str) -> Proposal | None:
            if sample_id not in known:
                return None
            try:
                return _read_proposal(store, store.row_of(sample_id))
            except (DataError, OSError) as error:
                self.miss("prior store", error)
                return None

        return read


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


def sources_of(runs: list[RunData]) -> Sources:
    """The data set of the first run that names one, and each run's store."""
    data = next((run.data for run in runs if run.data), {})
    fingerprint = next((run.config.get("data_fingerprint") for run in runs if run.data), None)
    stores = {run.name: path for run in runs if (path := store_of(run))}
    sources = Sources(data=data, data_fingerprint=fingerprint, stores=stores)
    for run in runs:
        if run.store and run.name not in stores:
            sources.miss("prior store", f"{run.store.get('path')} is gone, damaged, or another one by now")
    return sources


def store_of(run: RunData) -> Path | None:
    """Where the store that a run read lies by now; None without one, or if it is found nowhere."""
    config = run.config.get("config")
    cache_root = config.get("cache_root") if isinstance(config, dict) else None
    return place_of_store(run.store, cache_root or Path(str(run.store.get("path"))).parent)
