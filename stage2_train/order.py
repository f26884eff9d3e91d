"""Which reference is used where: a pure function of (seed, step).

A stream (labelled or unlabelled) walks endlessly over its references, reshuffled in every cycle. Optimiser step `s` of
a global batch of `B` uses positions `s*B .. s*B+B-1` of the stream, whatever the number of processes, the number of
accumulated micro-batches, or the step at which a run was resumed.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.seeding import rng
from shared.types import Sample


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One position of a stream."""

    cycle: int
    """How often the whole stream had been used before."""
    sample: Sample
    """The reference drawn, with one random sentence of it."""


def group_by_ref(samples: Sequence[Sample]) -> list[tuple[Sample, ...]]:
    """Samples of each reference, references in order of first appearance."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.ref_id, []).append(sample)
    return [tuple(group) for group in groups.values()]


@functools.lru_cache(maxsize=8)
def _shuffled(seed: int, stream: str, cycle: int, num_refs: int) -> np.ndarray:
    return rng(seed, "order", stream, cycle).permutation(num_refs)


def draw(seed: int, stream: str, position: int, refs: Sequence[tuple[Sample, ...]]) -> Draw:
    """The reference and sentence at one position of a stream.

    Args:
        seed: The run's seed.
        stream: `labelled` or `unlabelled`.
        position: Position counted from the start of the run.
        refs: The stream's references, each with its sentences.

    Returns:
        The draw; each cycle holds every reference exactly once.
    """
    cycle, offset = divmod(position, len(refs))
    sentences = refs[int(_shuffled(seed, stream, cycle, len(refs))[offset])]
    choice = int(rng(seed, "sentence", stream, cycle, sentences[0].ref_id).integers(len(sentences)))
    return Draw(cycle=cycle, sample=sentences[choice])


def micro_positions(
    step: int, micro: int, rank: int, *, batch: int, accumulation: int, num_processes: int
) -> range:
    """Positions of the stream that one process reads for one micro-batch.

    The global batch is cut into `accumulation` runs, each run into `num_processes` shares, so that joining the shares
    of all ranks of all micro-batches in order gives the global batch in order.
    """
    assert batch % (accumulation * num_processes) == 0, (batch, accumulation, num_processes)
    share = batch // (accumulation * num_processes)
    start = step * batch + (micro * num_processes + rank) * share
    return range(start, start + share)
