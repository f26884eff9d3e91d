"""One data set of a report: its samples, images and true masks, and what of them could not be read."""

from typing import Any

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.types import Sample


class Faults:
    """What could not be read, by kind."""

    def __init__(self) -> None:
        """Nothing is missing yet."""
        self._found: dict[str, dict[str, None]] = {}

    def add(self, kind: str, why: object) -> None:
        """Name a part; the same one counts once."""
        self._found.setdefault(kind, {})[str(why)] = None

    @property
    def lines(self) -> list[str]:
        """One line for each kind, in order of discovery: the first of it, and how many more."""
        return [
            f"{kind}: {next(iter(found))}" + (f" ({len(found) - 1:,} more)" if len(found) > 1 else "")
            for kind, found in self._found.items()
        ]


class DataSource:
    """Opens one data set on first use."""

    def __init__(self, data: dict[str, Any], fingerprint: str | None, faults: Faults) -> None:
        """Nothing is opened.

        Args:
            data: `root`, `dataset` and `split_by`.
            fingerprint: Of the annotations that are wanted; None where nothing says so.
            faults: Takes what cannot be read.
        """
        self.data, self._fingerprint, self._faults = data, fingerprint, faults
        self._dataset: Any = None
        self._samples: dict[str, Sample] | None = None

    @property
    def root(self) -> str:
        """Where it lies."""
        return str(self.data.get("root"))

    def has_other_annotations(self, fingerprint: str) -> bool:
        """Whether what lies there is not what has this fingerprint; False where nothing can be read."""
        self._open()
        return self._dataset is not None and self._dataset.fingerprint() != fingerprint

    def sample(self, sample_id: str) -> Sample | None:
        """The sample, or None if the data set is gone or does not know it."""
        self._open()
        assert self._samples is not None
        return self._samples.get(sample_id)

    def image(self, sample: Sample) -> Image.Image | None:
        """RGB image at its original size, or None."""
        self._open()
        if self._dataset is None:
            return None
        try:
            return self._dataset.image(sample)
        except (DataError, OSError) as error:
            self._faults.add("images", error)
            return None

    def truth(self, sample: Sample) -> np.ndarray | None:
        """True mask, bool [H, W] at the original size, or None."""
        self._open()
        if self._dataset is None or not self._dataset.has_mask(sample):
            return None
        try:
            return np.asarray(self._dataset.mask(sample), dtype=bool)
        except (DataError, OSError) as error:
            self._faults.add("true masks", error)
            return None

    def _open(self) -> None:
        """Read the annotations, unless that was tried before."""
        if self._samples is not None:
            return
        from shared.config import DataConfig
        from shared.datasets import load_dataset

        self._samples = {}
        root, dataset = self.data.get("root"), self.data.get("dataset")
        if not root or not dataset:
            self._faults.add("data set", "the runs do not say which one they used")
            return
        try:
            split_by = str(self.data.get("split_by", "unc"))
            opened = load_dataset(DataConfig(root=str(root), dataset=str(dataset), split_by=split_by))
            if self._fingerprint not in (None, opened.fingerprint()):
                self._faults.add("data set", f"{root} has other annotations than the runs were made with")
                return
            self._dataset = opened
            self._samples = {sample.sample_id: sample for sample in opened.samples()}
        except (DataError, OSError) as error:
            self._faults.add("data set", error)
