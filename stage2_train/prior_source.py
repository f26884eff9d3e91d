"""The priors of samples, as a run reads them from a store; for robustness studies, some of them misplaced.

Legend: B samples, G side of the stored grid.
"""

from collections.abc import Sequence

import numpy as np
import torch

from shared.seeding import rng
from shared.store.reader import PriorStore
from shared.types import STATUS_CODES, Sample

HAS_PRIOR = np.array([code for status, code in STATUS_CODES.items() if status.has_prior], dtype=np.uint8)
"""Codes of `status` under which a row carries a proposal."""


class StorePriors:
    """Soft masks by sample id; picklable by path."""

    def __init__(self, store: PriorStore) -> None:
        """Wrap a complete store."""
        self.store = store
        self._sorted_confidence: np.ndarray | None = None

    def read(self, sample_ids: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Proposals u8 [B,G,G] and bool [B]: whether the row has a prior (a usable box, or a mask from outside).

        Raises:
            DataError: A sample the store does not hold, or damaged data.
        """
        rows = self.store.rows_of(sample_ids)
        proposal_BGG = torch.from_numpy(self.store.batch("proposal", rows))
        return proposal_BGG, torch.from_numpy(np.isin(self.store.batch("status", rows), HAS_PRIOR))

    def trust(self, sample_ids: Sequence[str]) -> torch.Tensor:
        """f32 [B] in [0, 1]: share of training rows less confident than this one; NaN where it has no confidence.

        Among rows of the train split, so that a run is the same whatever else its store holds; a store without any
        ranks all its rows.
        """
        if self._sorted_confidence is None:
            known = self.store.column("confidence")
            splits = self.store.attrs.get("splits", ())
            is_training = self.store.column("split") == (splits.index("train") if "train" in splits else -1)
            known = known[is_training] if is_training.any() else known
            self._sorted_confidence = np.sort(known[np.isfinite(known)])
        ordered = self._sorted_confidence
        own_B = self.store.batch("confidence", self.store.rows_of(sample_ids))
        rank_B = (np.searchsorted(ordered, own_B) + np.searchsorted(ordered, own_B, side="right")) / 2
        trust_B = np.where(np.isfinite(own_B), rank_B / max(len(ordered), 1), np.nan)
        return torch.from_numpy(trust_B.astype(np.float32))

    def row_read(self, sample_id: str) -> str:
        """The sample whose row is read for this one."""
        return sample_id


class MisplacedPriors(StorePriors):
    """`StorePriors` in which a share of the rows carries the answer given for another object of the same image.

    For robustness studies. Which rows, and whose answer, is a function of (seed, sample id); a row whose image holds no
    other object keeps its own. Mask and status move together, as if the model had answered so.
    """

    def __init__(self, store: PriorStore, samples: Sequence[Sample], share: float, seed: int) -> None:
        """Decide for every one of `samples`."""
        super().__init__(store)
        by_image: dict[int, list[Sample]] = {}
        for sample in samples:
            by_image.setdefault(sample.image_id, []).append(sample)
        self._taken_from: dict[str, str] = {}
        for sample in samples:
            draw = rng(seed, sample.sample_id, "misplaced prior")
            others = [one for one in by_image[sample.image_id] if one.ann_id != sample.ann_id]
            if draw.random() < share and others:
                self._taken_from[sample.sample_id] = others[int(draw.integers(len(others)))].sample_id

    @property
    def num_misplaced(self) -> int:
        """Rows that carry another object's answer."""
        return len(self._taken_from)

    def row_read(self, sample_id: str) -> str:
        """See `StorePriors.row_read`."""
        return self._taken_from.get(sample_id, sample_id)

    def read(self, sample_ids: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `StorePriors.read`."""
        return super().read(list(map(self.row_read, sample_ids)))

    def trust(self, sample_ids: Sequence[str]) -> torch.Tensor:
        """See `StorePriors.trust`."""
        return super().trust(list(map(self.row_read, sample_ids)))
