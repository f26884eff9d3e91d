"""Which runs are drawn where there is room for few, and which sentences the gallery shows.

Of the sentences: the best, the worst, some at random, and those that changed most.

With several runs a change is the last run minus the first; with one it is the run minus the frozen prior.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from shared.seeding import rng
from stage2_train.report.run_data import RunData, finite

TAGS = ("best", "worst", "random", "most changed")
"""Why a sentence was chosen."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A sentence chosen for the gallery."""

    sample_id: str
    """Identity of the sample."""
    split: str
    """Its split."""
    tags: tuple[str, ...]
    """Why it was chosen."""
    change: float
    """Last run minus first, or run minus prior."""


def choose_runs(runs: list[RunData], most: int) -> list[RunData]:
    """At most so many runs, in their order: each method in its turn, of one share of labels before the next.

    A method is a recipe with its settings (`RunData.arm`).
    """
    shares = list(dict.fromkeys(run.fraction for run in runs))
    turns: Counter[str] = Counter()
    turn: dict[str, int] = {}
    for run in sorted(runs, key=lambda run: shares.index(run.fraction)):
        turn[run.name] = turns[run.arm]
        turns[run.arm] += 1
    chosen = {run.name for run in sorted(runs, key=lambda run: turn[run.name])[:most]}
    return [run for run in runs if run.name in chosen]


def scored_alike(runs: list[RunData]) -> list[RunData]:
    """The most runs that were scored on the same sentences of the same data, in their order; empty if none was."""
    groups: dict[tuple[str, str], list[RunData]] = {}
    for run in runs:
        for split in (split for split, data in run.evals.items() if data.sample_ids):
            groups.setdefault((split, run.data_of(split)), []).append(run)
    return max(groups.values(), key=len, default=[])


def choose(rows: list[dict[str, dict[str, Any]]], split: str, per_tag: int) -> list[Choice]:
    """Pick sentences that every run was scored on.

    Args:
        rows: For each run, sentences by sample id.
        split: Name of the split; keys the random choice.
        per_tag: How many for each reason.

    Returns:
        By falling mean IoU; a sentence chosen for several reasons appears once, with the first of them.
    """
    shared_ids = [key for key in rows[0] if all(key in table for table in rows[1:])]
    if not shared_ids:
        return []
    draws = rng("report gallery", split)
    shared_ids = [shared_ids[index] for index in draws.permutation(len(shared_ids))]
    mean = {key: _mean_iou([table[key] for table in rows]) for key in shared_ids}
    change = {key: _change([table[key] for table in rows]) for key in shared_ids}
    by_mean = sorted(shared_ids, key=lambda key: -mean[key])
    by_change = sorted((key for key in shared_ids if change[key]), key=lambda key: -change[key])
    half = (per_tag + 1) // 2
    num = len(shared_ids)
    gained = [key for key in by_change[:half] if change[key] > 0]
    lost = [key for key in by_change[-(per_tag - half) :] if change[key] < 0]
    picks = {
        "best": by_mean[: min(per_tag, (num + 1) // 2)],  # of few, a half is best and a half worst
        "worst": by_mean[num - min(per_tag, num // 2) :],
        "random": shared_ids[:per_tag],
        "most changed": gained + lost,
    }
    tags: dict[str, str] = {}
    for tag in TAGS:
        for key in picks[tag]:
            tags.setdefault(key, tag)
    ordered = sorted(tags, key=lambda key: -mean[key])
    return [Choice(sample_id=k, split=split, tags=(tags[k],), change=change[k]) for k in ordered]


def _mean_iou(rows: list[dict[str, Any]]) -> float:
    values = [finite(row.get("iou_original")) or 0.0 for row in rows]
    return sum(values) / len(values)


def _change(rows: list[dict[str, Any]]) -> float:
    """Last run minus first; with one run, run minus frozen prior (0 if that is unknown)."""
    first, last = finite(rows[0].get("iou_original")), finite(rows[-1].get("iou_original"))
    if len(rows) == 1:
        first = finite(rows[0].get("prior_iou_original"))
    return 0.0 if first is None or last is None else last - first
