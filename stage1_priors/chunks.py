"""Which rows are read, asked and turned into masks together: at most so many, whose images take at most so much memory.

Pure. What a chunk's images take is known before any is read, from the sizes in the annotations: of each image what the
model sees of it, that once more as the engine's image processor prepares it, and what the proposer has kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shared.types import Sample
from stage1_priors.config import PriorsConfig
from stage1_priors.families import Family, SizeRules
from stage1_priors.plan import Plan
from stage1_priors.reuse import Reusable

PIXEL_BYTES = 4
"""Of an image in memory: Pillow keeps RGB in 32 bits."""
PREPARED_NUMBERS = 6
"""Most numbers a pixel becomes in an image processor: three colours, twice where an image passes for two frames."""
NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of one such number, by `model.dtype`."""

BytesOf = Callable[[Sample, bool], int]
"""(sample, whether it is the first of its image in a chunk) -> memory that asking about it takes, bytes."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows whose answers are collected together."""

    shard: int
    """Shard they belong to."""
    start: int
    """Row of the plan that is the first of them."""
    known: np.ndarray
    """bool, one per row: another store has it, and the model is not asked."""
    is_first: bool
    """Whether they begin the shard. What is known of an image never passes from one shard to the next, so that the bits
    of a shard do not depend on which one was written before."""
    is_last: bool
    """Whether they end the shard."""
    asked: tuple[Sample, ...]
    """Those of the rows that the model is asked about; at least one."""
    failed_A: np.ndarray
    """bool, one per asked row: whether it is known to have failed before."""
    num_bytes: int
    """What their images take."""

    @property
    def stop(self) -> int:
        """Row of the plan after the last of them."""
        return self.start + len(self.known)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much is in hand at once: a chunk is being asked, `num_ahead` follow, and masks are made of one before."""

    rows: int
    """Most rows to ask for in a chunk."""
    num_bytes: int
    """Most bytes that its images take; an image that takes more by itself is alone in its chunk."""
    num_ahead: int
    """Chunks, if they are full, that are read ahead."""

    @classmethod
    def of(cls, config: PriorsConfig) -> "Bounds":
        """Those of a configuration; all chunks in hand share `engine.image_gb` alike."""
        engine = config.engine
        num_ahead = 1 + -(-engine.ahead_rows // engine.chunk_rows)
        num_bytes = int(engine.image_gb * 2**30 / (num_ahead + 2))
        return cls(rows=engine.chunk_rows, num_bytes=num_bytes, num_ahead=num_ahead)

    def has_room(self, ahead: Sequence[Chunk]) -> bool:
        """Whether a full chunk may be read besides those that are read ahead already."""
        rows, num_bytes = sum(len(chunk.asked) for chunk in ahead), sum(chunk.num_bytes for chunk in ahead)
        fewer = self.num_ahead - 1
        return not ahead or (rows <= fewer * self.rows and num_bytes <= fewer * self.num_bytes)


def bytes_of_images(
    config: PriorsConfig,
    family: Family,
    rules: SizeRules,
    kept_hw: Callable[[tuple[int, int]], tuple[int, int]],
) -> BytesOf:
    """What images take, by the sizes in the annotations.

    Args:
        config: Number format of the model; whether images are prepared once, however many rows ask about them, and
            whether again for sampled boxes.
        family: Gives the size that the model sees.
        rules: The model's limits on it.
        kept_hw: Size of an image -> size of what the proposer has kept of it.
    """
    prepared = PREPARED_NUMBERS * NUMBER_BYTES[config.model.dtype] * (2 if config.model.num_samples else 1)

    def bytes_of(sample: Sample, is_new: bool) -> int:
        if not is_new and config.engine.caching:
            return 0
        seen = _area(family.processed_size(sample.height, sample.width, rules))
        kept = _area(kept_hw((sample.height, sample.width)))
        return prepared * seen + (PIXEL_BYTES * (seen + kept) if is_new else 0)

    return bytes_of


def _area(size_hw: tuple[int, int]) -> int:
    return size_hw[0] * size_hw[1]


def chunks_of(
    plan: Plan, known: Reusable, shards: Iterable[int], bounds: Bounds, bytes_of: BytesOf
) -> Iterator[Chunk]:
    """The shards cut into chunks; a chunk never spans two shards.

    Args:
        plan: All rows.
        known: Those that are not asked for; each of `shards` has others.
        shards: What to cut; one is asked for when the chunks of the one before are.
        bounds: How much a chunk may hold.
        bytes_of: What images take.
    """
    for shard in shards:
        first, end = plan.bounds(shard)
        asked = np.flatnonzero(~known.known(first, end)) + first
        parts = cut([plan.samples[row] for row in asked], bounds, bytes_of)
        starts = [first, *(int(asked[index]) for index, _ in parts[1:])]
        for start, stop, (_, num_bytes) in zip(starts, [*starts[1:], end], parts, strict=True):
            known_B = known.known(start, stop)
            yield Chunk(
                shard=shard,
                start=start,
                known=known_B,
                is_first=start == first,
                is_last=stop == end,
                asked=tuple(plan.samples[start + row] for row in np.flatnonzero(~known_B)),
                failed_A=known.failed_N[start:stop][~known_B],
                num_bytes=num_bytes,
            )


def cut(samples: Sequence[Sample], bounds: Bounds, bytes_of: BytesOf) -> list[tuple[int, int]]:
    """(index of the first sample, bytes) of each part when samples are cut, in order, into parts within the bounds."""
    parts: list[tuple[int, int]] = []
    first, num_bytes, names = 0, 0, set[str]()
    for index, sample in enumerate(samples):
        more = bytes_of(sample, sample.file_name not in names)
        if index > first and (index - first == bounds.rows or num_bytes + more > bounds.num_bytes):
            parts.append((first, num_bytes))
            first, num_bytes = index, 0
            names.clear()
            more = bytes_of(sample, True)
        num_bytes += more
        names.add(sample.file_name)
    parts.append((first, num_bytes))
    return parts
