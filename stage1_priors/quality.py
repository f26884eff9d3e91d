"""How good the frozen prior itself is: its own oIoU, mIoU and Pr@X, and what its boxes and confidences are worth.

Reported beside every model that was trained with it: without it a gain cannot be credited to the training.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.metrics import SegmentationMeter, iou, iou_counts
from shared.store.reader import PriorStore
from shared.types import STATUS_BY_CODE, STATUS_CODES, AnswerStatus, Sample
from stage1_priors.answers import box_iou
from stage1_priors.store_data import dataset_of

BATCH_ROWS = 256


def score_store(path: str | Path, split: str | None = None, root: str = "") -> dict[str, dict[str, Any]]:
    """Score a complete store against the ground truth at the images' original resolution.

    The prior's mask is its proposal, resized bilinearly to the original image, at 0.5 or above; rows without a
    prior count as empty masks.

    Args:
        path: The store.
        split: One split; None: all of them.
        root: Where the data set lies now; "": where it lay when the store was written.

    Returns:
        By split: `num`, `oiou`, `miou`, `pr@0.5` .. `pr@0.9` (mask), `box_miou`, `box_acc@0.5` (None where masks were
        imported, without boxes), `auroc` (of the confidence for box IoU >= 0.5; None if all rows are alike),
        `proposer_auroc` (of the proposer's own IoU for mask IoU >= 0.5), `status` (share of each) and, if boxes were
        sampled, `sample_auroc` (as `auroc`, for their mean pairwise IoU). Sentences without a drawn mask
        are left out, as are those behind the store's limit; `num` alone, 0, for a split that has none.

    Raises:
        DataError: An incomplete store, a split it does not hold, or data that differ from what it was written for.
    """
    store = PriorStore(path)
    store.require_complete()
    dataset = dataset_of(store, root)
    splits = list(store.attrs["splits"])
    if split is not None and split not in splits:
        raise DataError(f"{path}: holds no split {split!r} (it has {', '.join(splits)})")
    result, held = {}, set(store.sample_ids)
    for name in [split] if split else splits:
        samples = [sample for sample in dataset.samples(name) if dataset.has_mask(sample)]
        if store.limit is not None:
            samples = [sample for sample in samples if sample.sample_id in held]
        result[name] = _score_split(store, dataset, samples) if samples else {"num": 0}
    return result


def _score_split(store: PriorStore, dataset: Any, samples: list[Sample]) -> dict[str, Any]:
    meter = SegmentationMeter()
    box_ious: list[np.ndarray] = []
    confidences: list[np.ndarray] = []
    statuses: list[np.ndarray] = []
    mask_ious: list[float] = []
    expected_ious: list[np.ndarray] = []
    for start in range(0, len(samples), BATCH_ROWS):
        batch = samples[start : start + BATCH_ROWS]
        rows = store.rows_of([sample.sample_id for sample in batch])
        proposal_BGG = store.batch("proposal", rows)
        status_B = store.batch("status", rows)
        size_B4 = np.array([(sample.width, sample.height) * 2 for sample in batch], np.float64)
        truth_B4 = np.stack([dataset.box_xyxy_px(sample) for sample in batch])
        box_ious.append(box_iou(store.batch("box_xyxy_norm", rows) * size_B4, truth_B4))
        confidences.append(store.batch("confidence", rows))
        expected_ious.append(store.batch("proposer_iou", rows))
        statuses.append(status_B)
        for sample, proposal_GG, code in zip(batch, proposal_BGG, status_B, strict=True):
            has_prior = STATUS_BY_CODE[int(code)].has_prior
            mask_HW = prior_mask(proposal_GG, (sample.height, sample.width), has_prior)
            inter, union = iou_counts(mask_HW, dataset.mask(sample))
            meter.update(sample.sample_id, inter, union, sample.no_target)
            mask_ious.append(iou(inter, union))
    box_iou_N, status_N = np.concatenate(box_ious), np.concatenate(statuses)
    imported = np.isin(
        status_N, [STATUS_CODES[AnswerStatus.IMPORTED], STATUS_CODES[AnswerStatus.NOT_IMPORTED]]
    )
    codes, counts = np.unique(status_N, return_counts=True)
    return {
        **meter.result(),
        "box_miou": None if imported.any() else float(box_iou_N.mean()),
        "box_acc@0.5": None if imported.any() else float((box_iou_N >= 0.5).mean()),
        "auroc": auroc(np.concatenate(confidences), box_iou_N >= 0.5),
        "proposer_auroc": auroc(np.concatenate(expected_ious), np.array(mask_ious) >= 0.5),
        "status": {
            str(STATUS_BY_CODE[int(code)]): int(count) / len(status_N)
            for code, count in zip(codes, counts, strict=True)
        },
        **_sample_scores(store, samples, box_iou_N >= 0.5),
    }


def _sample_scores(store: PriorStore, samples: list[Sample], hit_N: np.ndarray) -> dict[str, Any]:
    """`sample_auroc`, the `auroc` of the sampled boxes' mean pairwise IoU; nothing if none were sampled."""
    if "sample_iou" not in store.fields:
        return {}
    rows = store.rows_of([sample.sample_id for sample in samples])
    return {"sample_auroc": auroc(store.batch("sample_iou", rows), hit_N)}


def prior_mask(proposal_GG: np.ndarray, size_hw: tuple[int, int], has_prior: bool) -> np.ndarray:
    """The prior's hard mask at a target size.

    Args:
        proposal_GG: uint8 [G, G] over the whole image.
        size_hw: Target height and width.
        has_prior: Whether the row's status has a usable prior; otherwise the mask is empty.

    Returns:
        bool [H, W]: bilinearly resized probability >= 0.5.
    """
    if not has_prior:
        return np.zeros(size_hw, bool)
    prob = Image.fromarray(proposal_GG.astype(np.float32) / 255)
    return np.asarray(prob.resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)) >= 0.5


def auroc(score_N: np.ndarray, positive_N: np.ndarray) -> float | None:
    """Chance that a positive row scores above a negative one, ties counting one half; rows of NaN score are left out.

    Returns:
        None if there is no positive or no negative row.
    """
    known = np.isfinite(score_N)
    score_N, positive_N = score_N[known], positive_N[known]
    num_positive = int(positive_N.sum())
    num_negative = len(positive_N) - num_positive
    if not num_positive or not num_negative:
        return None
    _, inverse, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float(
        (rank_N[positive_N].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)
    )
