"""Which rows a store holds and in which order: a pure function of the data set and the splits.

Row i of the store is sample i of the plan, whatever the number of workers or earlier interruptions. Expressions of one
image are neighbours (they share the image part of the prompt). The unit of work is a whole shard.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from shared.errors import DataError
from shared.types import Sample


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The rows of one store."""

    samples: tuple[Sample, ...]
    """Row i is samples[i]."""
    splits: tuple[str, ...]
    """Split names; a row's split code is the index here."""
    shard_rows: int
    """Rows per shard; the last shard may be shorter."""
    left_out: int = 0
    """Samples of the splits behind a limit."""

    @property
    def num_shards(self) -> int:
        """Shards needed for all rows."""
        return -(-len(self.samples) // self.shard_rows)

    def rows_of(self, index: int) -> int:
        """Rows of shard `index`."""
        return min(self.shard_rows, len(self.samples) - index * self.shard_rows)

    def bounds(self, index: int) -> tuple[int, int]:
        """First row of shard `index`, and the row after its last."""
        return index * self.shard_rows, index * self.shard_rows + self.rows_of(index)

    def shard(self, index: int) -> tuple[Sample, ...]:
        """Samples of shard `index`, in row order."""
        start, stop = self.bounds(index)
        return self.samples[start:stop]


def make_plan(
    samples: Iterable[Sample],
    splits: Sequence[str],
    shard_rows: int,
    where: str,
    limit: int | None = None,
) -> Plan:
    """Order the samples: by split (as listed in `splits`), then image id, then sentence id.

    Args:
        samples: Samples of the data set, any order; other splits are left out.
        splits: Splits to cover.
        shard_rows: Rows per shard.
        where: Name of the data set, for messages.
        limit: Most samples, the first in that order; None: all.

    Raises:
        DataError: A split without samples, or a sample id that occurs twice.
    """
    samples = list(samples)
    code = {split: index for index, split in enumerate(splits)}
    kept = [sample for sample in samples if sample.split in code]
    found = {sample.split for sample in kept}
    for split in splits:
        if split not in found:
            known = ", ".join(dict.fromkeys(sample.split for sample in samples))
            raise DataError(f"{where}: split {split!r} has no sentences (there are {known})")
    kept.sort(key=lambda sample: sample.sample_id)
    for sample, following in pairwise(kept):
        if sample.sample_id == following.sample_id:
            raise DataError(f"{where}: sample id {sample.sample_id!r} occurs twice")
    # One key after the other, the last first: sorting is stable, and no tuple per sample is made.
    kept.sort(key=lambda sample: sample.sent_id)
    kept.sort(key=lambda sample: sample.image_id)
    kept.sort(key=lambda sample: code[sample.split])
    first = tuple(kept[:limit])
    left_out = len(kept) - len(first)
    return Plan(samples=first, splits=tuple(splits), shard_rows=shard_rows, left_out=left_out)


def shards_of_worker(
    pending: Sequence[int], worker: int, num_workers: int, dealt: Sequence[int] | None = None
) -> list[int]:
    """The pending shards that one of several independent processes writes.

    Args:
        pending: Shards that are missing now, in order.
        worker: Its number.
        num_workers: How many processes there are.
        dealt: Shards that were missing when all of them were planned, the same list for each: every worker has as many
            of them as any other, give or take one, whatever is done by the time it starts. None: each has those with
            index = worker (mod workers), which processes that know nothing of each other agree on.

    Raises:
        DataError: A worker number outside 0..num_workers-1.
    """
    if not 0 <= worker < num_workers:
        raise DataError(f"worker {worker} of {num_workers}: expected 0 to {num_workers - 1}")
    if dealt is None:
        return [shard for shard in pending if shard % num_workers == worker]
    mine = {*dealt[worker::num_workers]}
    return [shard for shard in pending if shard in mine]
