"""Weak labels of unlabelled objects: the box or the point that an annotator would draw instead of a mask.

A box or point that is given (`box`, `point` of a JSONL file) is taken; else, as in data sets that carry masks alone,
the weak label is made from the mask, once, before training. What comes out holds numbers and no data set: from it, as
from the reader of unlabelled samples, no mask can be reached.

Legend: B samples. Coordinates are x, y in [0,1] of the image, NaN where the annotation is empty.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shared.errors import DataError
from shared.refer import ReferringDataset
from shared.seeding import rng
from shared.types import Sample


class WeakLabels:
    """Boxes or points by annotation; picklable."""

    def __init__(self, kind: Literal["box", "point"], values: Mapping[int, Sequence[float]]) -> None:
        """Keep `values`: annotation id to 4 (box) or 2 (point) numbers."""
        self.kind = kind
        self._values = {ann_id: tuple(map(float, numbers)) for ann_id, numbers in values.items()}

    def read(self, samples: Sequence[Sample]) -> Tensor:
        """f32 [B,4] x0, y0, x1, y1, or [B,2] x, y."""
        return torch.tensor([self._values[sample.ann_id] for sample in samples], dtype=torch.float32)


def collect_weak_labels(
    dataset: ReferringDataset, samples: Sequence[Sample], kind: Literal["box", "point"], seed: int
) -> WeakLabels:
    """The weak label of every annotation that `samples` name.

    Args:
        dataset: A reader that may see their masks; it is not kept.
        samples: The unlabelled samples.
        kind: `box` is the given or the tight box, `point` the given one or a uniformly random pixel of the mask.
        seed: Seed of the points; an object's point is the same in every run with it.

    Raises:
        DataError: A malformed segmentation, or neither a weak label nor a mask.
    """
    values: dict[int, Sequence[float]] = {}
    for sample in samples:
        if sample.ann_id not in values:
            given = _given(dataset, sample, kind)
            values[sample.ann_id] = _made(dataset, sample, kind, seed) if given is None else given
    return WeakLabels(kind, values)


def _given(dataset: ReferringDataset, sample: Sample, kind: str) -> Sequence[float] | None:
    size = [sample.width, sample.height]
    if kind == "box":
        box_4 = dataset.weak_box_xyxy_px(sample)
        return None if box_4 is None else (box_4 / np.array(size * 2)).tolist()
    point_2 = dataset.weak_point_xy_px(sample)
    return None if point_2 is None else (point_2 / np.array(size)).tolist()


def _made(dataset: ReferringDataset, sample: Sample, kind: str, seed: int) -> Sequence[float]:
    try:
        return _box(dataset, sample) if kind == "box" else _point(dataset, sample, seed)
    except DataError as error:
        raise DataError(f"{error}, to make a {kind} of where none is given") from error


def _box(dataset: ReferringDataset, sample: Sample) -> Sequence[float]:
    box_4 = dataset.box_xyxy_px(sample) / np.array([sample.width, sample.height] * 2)
    return box_4.tolist() if box_4[2] > box_4[0] else (np.nan,) * 4


def _point(dataset: ReferringDataset, sample: Sample, seed: int) -> Sequence[float]:
    row_N, column_N = np.nonzero(dataset.mask(sample))
    if not len(row_N):
        return (np.nan, np.nan)
    chosen = int(rng(seed, "weak point", sample.ann_id).integers(len(row_N)))
    return ((column_N[chosen] + 0.5) / sample.width, (row_N[chosen] + 0.5) / sample.height)


def mirror_weak_label(values: Tensor) -> Tensor:
    """The boxes [B,4] or points [B,2] of the mirrored images."""
    if values.shape[1] == 2:
        return torch.stack((1.0 - values[:, 0], values[:, 1]), dim=1)
    x0_B, y0_B, x1_B, y1_B = values.unbind(1)
    return torch.stack((1.0 - x1_B, y0_B, 1.0 - x0_B, y1_B), dim=1)
