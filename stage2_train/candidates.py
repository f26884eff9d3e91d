"""Class-agnostic candidate masks of an image: what SemiRES takes from SAM's everything mode.

A store may hold an array `candidates` (u8, rows [M,G,G], probability x 255, absent ones all zero; an image's first row
in a shard holds them for all its rows there). Where it does not, the candidates of an image are the proposals of all
its training rows, one for each thing: the set says what there is in the image, not which row asked for it, and so tells
nothing about the sentence at hand. They cover only what some sentence names, and are as good as the answers.

Legend: B samples, R rows of an image, M candidates, G side of the stored grid.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared.errors import DataError
from shared.store.reader import PriorStore
from shared.store.schema import first_rows
from shared.types import Sample
from stage2_train.comparison_config import SemiresConfig
from stage2_train.prior_source import HAS_PRIOR

FIELD = "candidates"
"""Optional array of a prior store."""

HALF = 128
"""Least stored value that counts as inside."""


class StoreCandidates:
    """Candidate masks by sample; picklable by path."""

    def __init__(self, store: PriorStore, config: SemiresConfig) -> None:
        """Wrap a complete store.

        Raises:
            DataError: An array `candidates` of another shape or type.
        """
        self.store, self.config = store, config
        spec = store.fields.get(FIELD)
        if spec is not None and (len(spec.row_shape) != 3 or spec.dtype != "uint8"):
            raise DataError(
                f"{store.path}: {FIELD} has rows of {spec.dtype} {spec.row_shape}, not uint8 (M, G, G)"
            )
        self.are_stored = spec is not None
        self._rows = {} if self.are_stored else _rows_by_image(store)
        self._first_N = first_rows(store.column("image_id")) if self.are_stored else np.empty(0, np.int64)
        self._distinct: dict[int, list[int]] = {}

    def read(self, samples: Sequence[Sample]) -> Tensor:
        """Soft masks u8 [B,M,G,G] with M = `max_candidates`; an absent one is all zero.

        Raises:
            DataError: A sample the store does not hold, or damaged data.
        """
        if self.are_stored:
            rows = self._first_N[self.store.rows_of([sample.sample_id for sample in samples])]
            stored_BMGG = self.store.batch(FIELD, rows)[:, : self.config.max_candidates]
            return torch.from_numpy(np.stack([_padded(m, self.config.max_candidates) for m in stored_BMGG]))
        return torch.from_numpy(np.stack([self._of_image(sample.image_id) for sample in samples]))

    def _of_image(self, image_id: int) -> np.ndarray:
        if image_id not in self._distinct:
            rows = self._rows.get(image_id, [])
            distinct = distinct_masks(self.store.batch("proposal", rows), self.config.same_iou)
            self._distinct[image_id] = [rows[index] for index in distinct][: self.config.max_candidates]
        soft_MGG = self.store.batch("proposal", self._distinct[image_id])
        return _padded(soft_MGG, self.config.max_candidates)


def _rows_by_image(store: PriorStore) -> dict[int, list[int]]:
    """Rows of the train split that carry a proposal, by image."""
    train = store.attrs["splits"].index("train")
    useful_N = (store.column("split") == train) & np.isin(store.column("status"), HAS_PRIOR)
    rows: dict[int, list[int]] = {}
    for row in np.flatnonzero(useful_N).tolist():
        rows.setdefault(int(store.column("image_id")[row]), []).append(row)
    return rows


def distinct_masks(soft_RGG: np.ndarray, same_iou: float) -> list[int]:
    """Indices of masks that are not empty and whose IoU with every earlier one kept is below `same_iou`."""
    mask_RGG = soft_RGG >= HALF
    kept: list[int] = []
    for index, mask_GG in enumerate(mask_RGG):
        if mask_GG.any() and all(_iou(mask_GG, mask_RGG[other]) < same_iou for other in kept):
            kept.append(index)
    return kept


def _iou(a_GG: np.ndarray, b_GG: np.ndarray) -> float:
    return float((a_GG & b_GG).sum() / (a_GG | b_GG).sum())


def _padded(mask_MGG: np.ndarray, num: int) -> np.ndarray:
    return np.concatenate((mask_MGG, np.zeros((num - len(mask_MGG), *mask_MGG.shape[1:]), np.uint8)))
