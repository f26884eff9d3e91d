"""From answered chunks to written shards: masks are made, and rows that were known are put between."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from stage1_priors.answers import AnswerRows
from stage1_priors.attempts import Attempts
from stage1_priors.canary import CanaryResult
from stage1_priors.chunks import Chunk
from stage1_priors.failures import info_of_retried, keep_candidates
from stage1_priors.job import Job
from stage1_priors.known_shards import propose_chunk, write_columns
from stage1_priors.memory import release_freed_memory, resident_gb
from stage1_priors.open_shards import OpenShards
from stage1_priors.proposers import Proposer
from stage1_priors.reuse import Reusable, merge_rows


class Finisher:
    """Makes the masks of answered chunks, in order, and writes a shard with its last chunk."""

    def __init__(
        self,
        job: Job,
        proposer: Proposer,
        known: Reusable,
        canary: CanaryResult,
        shards: OpenShards,
        attempts: Attempts,
        retrying: bool,
    ) -> None:
        """Keep what the shards need; `shards` and `attempts` are theirs, the rest is as of `write_asked_shards`."""
        self._job, self._proposer, self._known, self._canary = job, proposer, known, canary
        self._shards = shards
        self._attempts, self._retrying = attempts, retrying
        self._parts: list[dict[str, np.ndarray]] = []
        self._started = time.monotonic()
        self.written: set[int] = set()
        """Shards that are in the store."""
        self.full_gb = 0.0
        """What the process took once that was more than it may, GiB; 0 until then. No limit holds where failed rows are
        asked again: a new process would begin with the same ones."""

    def finish(
        self,
        chunk: Chunk,
        images: Sequence[Image.Image | None],
        rows: AnswerRows,
        arrays: dict[str, np.ndarray],
    ) -> None:
        """Complete the columns of a chunk; write its shard if it is the last."""
        made = propose_chunk(self._proposer, chunk, images, rows.box_xyxy_norm_B4, rows.edges_B)
        asked = arrays | made
        taken = self._known.columns(chunk.start, chunk.stop, list(asked))
        self._parts.append(merge_rows(chunk.known, taken, asked))
        if not chunk.is_last:
            return
        columns = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        self._write(chunk.shard, columns)
        self._parts, self._started = [], time.monotonic()
        release_freed_memory()
        limit = self._job.config.engine.memory_gb
        if limit is not None and not self._retrying and (taken_gb := resident_gb()) > limit:
            self.full_gb = taken_gb

    def _write(self, shard: int, columns: dict[str, np.ndarray]) -> None:
        bounds = self._job.plan.bounds(shard)
        info: dict[str, Any] = {
            "seconds": round(time.monotonic() - self._started, 3),
            "canary_passed": self._known.canary_passed(*bounds, self._canary.passed),
        }
        if self._retrying:
            info |= info_of_retried(self._job.path, shard)
            keep_candidates(self._job.path, bounds, columns)
        elif reused := self._known.counts(*bounds):
            info["reused"] = reused
        if not self._shards.is_others(shard):
            write_columns(self._job, shard, columns, info, overwrite=self._retrying)
        self._attempts.end(shard)
        self.written.add(shard)
