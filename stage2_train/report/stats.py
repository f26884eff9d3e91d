"""The arithmetic of the report: oIoU by sentence length, paired differences, agreement with the prior, spread.

Every function is pure. Counts are pixels at the original image size; an image is the unit of resampling, because the
sentences of one image are not independent.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shared.metrics import LENGTH_BUCKETS
from shared.seeding import rng
from stage2_train.report.run_data import EvalData, RunData

NUM_RESAMPLES = 1000
"""Bootstrap resamples."""
FEWEST = 20
"""Sentences that a bin of lengths holds at least: fewer say little about a trend."""


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
    """What a grid calls it; else the recipe, and what was changed of it that was not changed of all."""
    fraction: float | None
    """Share of labelled images."""
    split: str
    """Test split."""
    seeds: tuple[str, ...]
    """Seeds, in the order of the runs."""
    values: tuple[float, ...]
    """oIoU at the original size, one per seed."""
    mious: tuple[float, ...]
    """mIoU at the original size, of the seeds that have it."""
    num_draws: int
    """Different sets of labelled images among the runs."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def miou(self) -> float | None:
        """Mean mIoU; None if a seed has none."""
        return float(np.mean(self.mious)) if len(self.mious) == len(self.values) else None

    @property
    def sd(self) -> float:
        """Sample standard deviation over seeds (n - 1)."""
        return float(np.std(self.values, ddof=1))


def num_words(expression: str) -> int:
    """Words of an expression, split at white space; an empty one counts as 1."""
    return max(1, len(expression.split()))


def length_ranges(evals: Sequence[EvalData]) -> list[tuple[int, int]]:
    """(fewest, most) words of each bin: neighbours are joined until every run has `FEWEST` sentences in each."""
    words = [np.array([num_words(text) for text in data.expressions]) for data in evals]
    ranges: list[tuple[int, int]] = []
    fewest = 1
    for _, most in LENGTH_BUCKETS:
        if all(((words_N >= fewest) & (words_N <= most)).sum() >= FEWEST for words_N in words):
            ranges.append((fewest, most))
            fewest = most + 1
    last = LENGTH_BUCKETS[-1][1]
    return [*ranges[:-1], (ranges[-1][0] if ranges else 1, last)]


def by_length(data: EvalData, ranges: Sequence[tuple[int, int]]) -> list[LengthBin]:
    """Scores by number of words, of `length_ranges`; bins without sentences are left out."""
    words_N = np.array([num_words(expression) for expression in data.expressions])
    bins = []
    for fewest, most in ranges:
        keep_N = (words_N >= fewest) & (words_N <= most)
        if not keep_N.any():
            continue
        kept = {name: values_N[keep_N] for name, values_N in data.columns.items()}
        bins.append(
            LengthBin(
                label=f"{fewest}+" if most == LENGTH_BUCKETS[-1][1] else f"{fewest}–{most}",
                num=int(keep_N.sum()),
                oiou=_ratio(kept["inter_original"], kept["union_original"]),
                miou=_mean(kept["iou_original"]),
                prior_oiou=_ratio(kept["prior_inter_original"], kept["prior_union_original"]),
                prior_miou=_mean(kept["prior_iou_original"]),
            )
        )
    return bins


def overall_interval(data: EvalData) -> Interval | None:
    """The oIoU with its interval, resampling images; None without per-sentence counts or with a single image."""
    images = _counts_by_image(data)
    if images is None or len(images[0]) < 2:
        return None
    table_M2 = images[1]
    weight_RM = _resamples(len(table_M2), "overall", data.split)
    return _interval(_ratio(table_M2[:, 0], table_M2[:, 1]), _ratios(weight_RM, table_M2))


def paired_difference(first: EvalData, second: EvalData) -> Interval | None:
    """The oIoU of `second` minus that of `first` with its interval, resampling the images both were scored on.

    Returns:
        None if the two were not scored on the same sentences, or without counts.
    """
    if set(first.sample_ids) != set(second.sample_ids):
        return None
    images_a, images_b = _counts_by_image(first), _counts_by_image(second)
    if images_a is None or images_b is None or len(images_a[0]) < 2 or images_a[0] != images_b[0]:
        return None
    a_M2, b_M2 = images_a[1], images_b[1]
    weight_RM = _resamples(len(a_M2), "paired", first.split)
    value_a, value_b = _ratio(a_M2[:, 0], a_M2[:, 1]), _ratio(b_M2[:, 0], b_M2[:, 1])
    if value_a is None or value_b is None:
        return None
    return _interval(value_b - value_a, _ratios(weight_RM, b_M2) - _ratios(weight_RM, a_M2))


def agreement(data: EvalData) -> Agreement | None:
    """Who is right at IoU 0.5, per sentence; None without the prior's per-sentence scores."""
    iou_N, prior_N = data.columns["iou_original"], data.columns["prior_iou_original"]
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
    """One entry per split of runs that differ in their seeds alone; of several with one seed the first counts.

    Whether the labelled images were drawn anew for each seed is said in `num_draws`.
    """
    names = arm_names(runs)
    groups: dict[tuple[str, float | None, str], dict[str, RunData]] = defaultdict(dict)
    for run in runs:
        for split, data in run.evals.items():
            if data.score("original", "oiou") is not None:
                groups[run.arm, run.fraction, split].setdefault(str(run.seed), run)
    found = []
    for (arm, fraction, split), by_seed in groups.items():
        mious = [run.evals[split].score("original", "miou") for run in by_seed.values()]
        values = [run.evals[split].score("original", "oiou") for run in by_seed.values()]
        if len(values) > 1:
            found.append(
                Spread(
                    variant=names[arm],
                    fraction=fraction,
                    split=split,
                    seeds=tuple(by_seed),
                    values=tuple(value for value in values if value is not None),
                    mious=tuple(value for value in mious if value is not None),
                    num_draws=len({run.split.get("hash") for run in by_seed.values()}),
                )
            )
    return found


def arm_names(runs: list[RunData]) -> dict[str, str]:
    """What each arm is called: as its grid does (of several grids with the grid's name), or by recipe and changes."""
    arms: dict[str, RunData] = {}
    for run in runs:
        arms.setdefault(run.arm, run)
    shared = set.intersection(*(set(run.changes) for run in arms.values())) if len(arms) > 1 else set()
    several = len({run.grid for run in runs}) > 1
    names = {}
    for arm, run in arms.items():
        changes = (change for change in run.changes if change not in shared)
        name = run.called or " ".join([str(run.config.get("recipe") or run.method), *changes])
        names[arm] = f"{run.grid}: {name}" if several and run.grid else name
    return names


def summary_disagrees(data: EvalData, tolerance: float = 2e-3) -> str | None:
    """A sentence if the score file and the per-sentence file do not tell the same story, else None."""
    if not data.sample_ids:
        return f"{data.split}: the per-sentence file is missing or empty"
    held = len(data.sample_ids)
    if data.num != held:
        return f"{data.split}: the score file counts {data.num} sentences, the per-sentence file holds {held}"
    written = data.score("original", "oiou")
    again = _ratio(data.columns["inter_original"], data.columns["union_original"])
    if written is not None and again is not None and abs(written - again) > tolerance:
        return f"{data.split}: oIoU is {written:.4f} in the score file but {again:.4f} from the sentences"
    return None


def _counts_by_image(data: EvalData) -> tuple[list[str], np.ndarray] | None:
    """Images by name, and pixels f64 [M,2] (intersection, union) summed over the sentences of each.

    None without sentences, or if any count is unknown.
    """
    if not data.sample_ids:
        return None
    pair_N2 = np.stack([data.columns["inter_original"], data.columns["union_original"]], axis=1)
    if not np.isfinite(pair_N2).all():
        return None
    images, place_N = np.unique(data.image_ids, return_inverse=True)
    return images.tolist(), np.stack([np.bincount(place_N, weights=one_N) for one_N in pair_N2.T], axis=1)


@lru_cache(maxsize=8)
def _resamples(num: int, *key: str) -> np.ndarray:
    """f64 [R, num]: how often each image is drawn in each of R resamples with replacement; the same for every run."""
    draws = rng("report bootstrap", *key)
    weight_RM = np.stack(
        [np.bincount(draws.integers(num, size=num), minlength=num) for _ in range(NUM_RESAMPLES)]
    ).astype(np.float64)
    weight_RM.flags.writeable = False
    return weight_RM


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
