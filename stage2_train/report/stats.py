"""The arithmetic of the report: oIoU by sentence length, paired differences, agreement with the prior, spread.

Every function is pure. Counts are pixels at the original image size; an image is the unit of resampling, because the
sentences of one image are not independent.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from shared.seeding import rng
from stage2_train.report.collect import EvalData, RunData

LENGTH_EDGES = (1, 3, 5, 8, 12)
"""First word count of each length bin; the last bin is open."""
NUM_RESAMPLES = 1000
"""Bootstrap resamples."""


@dataclass(frozen=True, kw_only=True)
class LengthBin:
    """Scores of the sentences whose word count falls in one bin."""

    label: str
    """For example `3–4` or `12+`."""
    num: int
    """Sentences."""
    oiou: float | None
    """sum(I) / sum(U) of the model; None without counts."""
    miou: float | None
    """Mean IoU of the model."""
    prior_oiou: float | None
    """sum(I) / sum(U) of the frozen prior; None where it is unknown."""
    prior_miou: float | None
    """Mean IoU of the frozen prior; None where it is unknown."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95% bootstrap interval."""

    value: float
    """The estimate itself."""
    low: float
    """2.5th percentile over resamples."""
    high: float
    """97.5th percentile over resamples."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Share of sentences by who is right at IoU 0.5, model or frozen prior; sums to 1."""

    both: float
    """Both right."""
    model_only: float
    """The model right, the prior wrong."""
    prior_only: float
    """The prior right, the model wrong."""
    neither: float
    """Both wrong."""
    num: int
    """Sentences with both scores."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One recipe with one set of settings over several seeds."""

    variant: str
    """The recipe, and what was changed of it."""
    fraction: float | None
    """Share of labelled images."""
    split: str
    """Test split."""
    seeds: tuple[str, ...]
    """Seeds, in the order of the runs."""
    values: tuple[float, ...]
    """oIoU at the original size, one per seed."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """Sample standard deviation over seeds (n - 1)."""
        return float(np.std(self.values, ddof=1))


def num_words(expression: str) -> int:
    """Words of an expression, split at white space; an empty one counts as 1."""
    return max(1, len(expression.split()))


def by_length(data: EvalData) -> list[LengthBin]:
    """Scores by number of words; bins without sentences are left out."""
    if not data.rows:
        return []
    words_N = np.array([num_words(str(row.get("expression", ""))) for row in data.rows])
    inter_N, union_N = data.column("inter_original"), data.column("union_original")
    iou_N, prior_N = data.column("iou_original"), data.column("prior_iou_original")
    prior_inter_N, prior_union_N = data.column("prior_inter_original"), data.column("prior_union_original")
    bins = []
    for low, high in pairwise((*LENGTH_EDGES, math.inf)):
        keep_N = (words_N >= low) & (words_N < high)
        if not keep_N.any():
            continue
        last = int(high) - 1 if math.isfinite(high) else None
        label = f"{low}+" if last is None else (str(low) if last == low else f"{low}–{last}")
        bins.append(
            LengthBin(
                label=label,
                num=int(keep_N.sum()),
                oiou=_ratio(inter_N[keep_N], union_N[keep_N]),
                miou=_mean(iou_N[keep_N]),
                prior_oiou=_ratio(prior_inter_N[keep_N], prior_union_N[keep_N]),
                prior_miou=_mean(prior_N[keep_N]),
            )
        )
    return bins


def overall_interval(data: EvalData) -> Interval | None:
    """The oIoU with its interval, resampling images; None without per-sentence counts or with a single image."""
    counts = _counts_by_image(data)
    if counts is None or len(counts) < 2:
        return None
    table_M2 = np.array(list(counts.values()))
    weight_RM = _resamples(len(table_M2), "overall", data.split)
    return _interval(_ratio(table_M2[:, 0], table_M2[:, 1]), _ratios(weight_RM, table_M2))


def paired_difference(first: EvalData, second: EvalData) -> Interval | None:
    """The oIoU of `second` minus that of `first` with its interval, resampling the images both were scored on.

    Returns:
        None if the two were not scored on the same sentences, or without counts.
    """
    if {row.get("sample_id") for row in first.rows} != {row.get("sample_id") for row in second.rows}:
        return None
    counts_a, counts_b = _counts_by_image(first), _counts_by_image(second)
    if counts_a is None or counts_b is None or len(counts_a) < 2 or counts_a.keys() != counts_b.keys():
        return None
    a_M2 = np.array([counts_a[image] for image in counts_a])
    b_M2 = np.array([counts_b[image] for image in counts_a])
    weight_RM = _resamples(len(a_M2), "paired", first.split)
    value_a, value_b = _ratio(a_M2[:, 0], a_M2[:, 1]), _ratio(b_M2[:, 0], b_M2[:, 1])
    if value_a is None or value_b is None:
        return None
    return _interval(value_b - value_a, _ratios(weight_RM, b_M2) - _ratios(weight_RM, a_M2))


def agreement(data: EvalData) -> Agreement | None:
    """Who is right at IoU 0.5, per sentence; None without the prior's per-sentence scores."""
    iou_N, prior_N = data.column("iou_original"), data.column("prior_iou_original")
    known_N = np.isfinite(iou_N) & np.isfinite(prior_N)
    if not known_N.any():
        return None
    model_N, prior_right_N = iou_N[known_N] >= 0.5, prior_N[known_N] >= 0.5
    return Agreement(
        both=float((model_N & prior_right_N).mean()),
        model_only=float((model_N & ~prior_right_N).mean()),
        prior_only=float((~model_N & prior_right_N).mean()),
        neither=float((~model_N & ~prior_right_N).mean()),
        num=int(known_N.sum()),
    )


def spreads(runs: list[RunData]) -> list[Spread]:
    """One entry per split of runs that differ in their seeds alone; of several with one seed the first counts."""
    groups: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    first: dict[str, RunData] = {}
    for run in runs:
        first.setdefault(run.settings, run)
        for split, data in run.evals.items():
            value = data.score("original", "oiou")
            if value is not None:
                groups[run.settings, split].setdefault(str(run.seed), value)
    return [
        Spread(
            variant=first[settings].variant,
            fraction=first[settings].fraction,
            split=split,
            seeds=tuple(values),
            values=tuple(values.values()),
        )
        for (settings, split), values in groups.items()
        if len(values) > 1
    ]


def summary_disagrees(data: EvalData, tolerance: float = 2e-3) -> str | None:
    """A sentence if the score file and the per-sentence file do not tell the same story, else None."""
    if not data.rows:
        return f"{data.split}: the per-sentence file is missing or empty"
    if data.num != len(data.rows):
        return f"{data.split}: the score file counts {data.num} sentences, the per-sentence file holds {len(data.rows)}"
    written = data.score("original", "oiou")
    again = _ratio(data.column("inter_original"), data.column("union_original"))
    if written is not None and again is not None and abs(written - again) > tolerance:
        return f"{data.split}: oIoU is {written:.4f} in the score file but {again:.4f} from the sentences"
    return None


def _counts_by_image(data: EvalData) -> dict[str, np.ndarray] | None:
    """Pixels (intersection, union) summed over the sentences of each image; None if any count is unknown."""
    if not data.rows:
        return None
    pair_N2 = np.stack([data.column("inter_original"), data.column("union_original")], axis=1)
    if not np.isfinite(pair_N2).all():
        return None
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for row, pair_2 in zip(data.rows, pair_N2, strict=True):
        counts[str(row.get("image_id"))] += pair_2
    return dict(counts)


def _resamples(num: int, *key: str) -> np.ndarray:
    """f64 [R, num]: how often each image is drawn in each of R resamples with replacement."""
    draws = rng("report bootstrap", *key)
    return np.stack(
        [np.bincount(draws.integers(num, size=num), minlength=num) for _ in range(NUM_RESAMPLES)]
    ).astype(np.float64)


def _ratios(weight_RM: np.ndarray, counts_M2: np.ndarray) -> np.ndarray:
    total_R2 = weight_RM @ counts_M2
    return total_R2[:, 0] / np.maximum(total_R2[:, 1], 1.0)


def _interval(value: float | None, values_R: np.ndarray) -> Interval | None:
    if value is None:
        return None
    low, high = np.percentile(values_R, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high))


def _ratio(inter_N: np.ndarray, union_N: np.ndarray) -> float | None:
    if not (np.isfinite(inter_N).all() and np.isfinite(union_N).all()) or union_N.sum() <= 0:
        return None
    return float(inter_N.sum() / union_N.sum())


def _mean(values_N: np.ndarray) -> float | None:
    known_N = values_N[np.isfinite(values_N)]
    return float(known_N.mean()) if len(known_N) else None
