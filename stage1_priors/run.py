"""The stage 1 run: plan, ask, parse, propose, write; one shard after the other, resumable after any kill.

A thin shell around pure parts. A run whose store is complete returns before torch or an engine is imported. Several
independent processes may share a store: each takes the shards with its own index modulo their number, and a shard has
one writer.
"""

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.runlog import ProgressBar
from shared.store.schema import RAW_TEXT_BYTES, encode_text_rows, first_rows
from shared.store.writer import write_shard
from shared.types import STATUS_BY_CODE, AnswerStatus, Sample
from stage1_priors.answers import AnswerRows, make_request, read_answers
from stage1_priors.canary import CanaryResult, run_canary
from stage1_priors.config import ImportConfig, PriorsConfig
from stage1_priors.engine import (
    Engine,
    EngineFactory,
    Request,
    Submitted,
    collect_isolated,
    submit_isolated,
)
from stage1_priors.engines import ENGINES
from stage1_priors.import_masks import import_masks
from stage1_priors.job import Job, changes, create, describe_plan, make_job, pending_of
from stage1_priors.memory import release_freed_memory
from stage1_priors.plan import Plan, shards_of_worker
from stage1_priors.proposers import PROPOSERS, Prompts, Proposer
from stage1_priors.samples import read_samples
from stage1_priors.workers import separate_from_other_workers

__all__ = ["describe_plan", "run_priors"]

MIN_CHUNK_OF_ERRORS = 8
"""A chunk of at least this many requests that all fail means a dead engine: the run stops whatever the ceilings."""


def run_priors(
    config: PriorsConfig | ImportConfig,
    *,
    worker: int = 0,
    num_workers: int = 1,
    engine_factory: EngineFactory | None = None,
    quiet: bool = False,
) -> Path:
    """Write what is missing of a store, and return its path.

    Args:
        config: The recipe; masks from outside are read by `import_masks`, without any engine.
        worker: Number of this process among `num_workers` independent ones.
        num_workers: Processes that share the store; the rows do not depend on it.
        engine_factory: Another engine than `config.engine.kind` names (tests).
        quiet: No progress on standard error.

    Raises:
        DataError: Unusable data, a failed canary, or more failures than the ceilings allow.
    """
    if isinstance(config, ImportConfig):
        return import_masks(config, worker=worker, num_workers=num_workers, quiet=quiet)
    started = time.monotonic()
    job = make_job(config)
    pending = pending_of(job)
    mine = shards_of_worker(pending, worker, num_workers)
    if not mine:
        _say(f"{job.path}: nothing to do ({len(pending)} shards pending elsewhere)", quiet)
        return job.path
    if not job.path.exists():
        for line in changes(job):
            _say(line, quiet)
    if num_workers > 1 or "SLURM_JOB_ID" in os.environ:
        separate_from_other_workers(worker, os.environ)
    factory = engine_factory or ENGINES[config.engine.kind]
    with (
        closing(PROPOSERS[config.proposer.kind](config.proposer, job.proposer_folder)) as proposer,
        closing(factory(job.model_folder, job.family, config.model, config.engine)) as engine,
    ):
        proposer.load()
        canary = run_canary(engine, job.family, job.rules, config.canary, config.clip_tolerance)
        if canary.passed is not None:
            _say(canary.line() + ("" if canary.passed else " - going on, as canary.mode=warn asks"), quiet)
        logprobs = {"mode": "raw", "temperature": 0.0, "top": config.model.top_logprobs}
        create(job, {"canary": canary.to_dict(), "logprobs": logprobs})
        tally = _write_shards(job, engine, proposer, mine, canary, quiet)
    seconds = time.monotonic() - started
    _say(f"{job.path}: {sum(tally.values())} pairs in {seconds:.0f} s ({_shares(tally)})", quiet)
    return job.path


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows whose answers are collected together."""

    shard: int
    """Shard they belong to."""
    is_first: bool
    """Whether they begin the shard. What is known of an image never passes from one shard to the next, so that the bits
    of a shard do not depend on which one was written before."""
    is_last: bool
    """Whether they end the shard."""
    samples: tuple[Sample, ...]
    """The rows."""


@dataclass(frozen=True, kw_only=True)
class LoadedChunk:
    """A chunk with its images read and resized."""

    chunk: Chunk
    """The rows."""
    requests: list[Request | None]
    """One per row; None where the image could not be read."""
    errors: list[str]
    """Why there is no request, per row."""
    images: list[Image.Image | None]
    """The original images, one per row, for a proposer that looks at them; else all None."""
    submitted: Submitted
    """The requests there are, in the engine's hands."""


def chunks_of(plan: Plan, shards: Sequence[int], rows: int) -> Iterator[Chunk]:
    """The shards cut into chunks of at most `rows` rows; a chunk never spans two shards."""
    for shard in shards:
        samples = plan.shard(shard)
        for start in range(0, len(samples), rows):
            part = samples[start : start + rows]
            is_last = start + rows >= len(samples)
            yield Chunk(shard=shard, is_first=start == 0, is_last=is_last, samples=part)


def load_chunk(job: Job, engine: Engine, chunk: Chunk) -> LoadedChunk:
    """Read and resize the images of a chunk, each image once, and submit its requests.

    An unreadable image is an error of its rows only.
    """
    images: dict[str, Image.Image | str] = {}
    requests: list[Request | None] = []
    errors: list[str] = []
    originals: list[Image.Image | None] = []
    for sample in chunk.samples:
        if sample.file_name not in images:
            try:
                images[sample.file_name] = job.dataset.image(sample)
            except DataError as error:
                images[sample.file_name] = str(error)
        image = images[sample.file_name]
        if isinstance(image, str):
            requests.append(None)
            errors.append(image)
            originals.append(None)
            continue
        requests.append(make_request(image, sample.expression, job.family, job.rules, sample.sample_id))
        errors.append("")
        originals.append(image if job.config.proposer.is_sam else None)
    submitted = submit_isolated(engine, [request for request in requests if request is not None])
    return LoadedChunk(chunk=chunk, requests=requests, errors=errors, images=originals, submitted=submitted)


@dataclass(kw_only=True)
class Timing:
    """Where a run's time went, seconds."""

    asking: float = 0.0
    """The engine was at work."""
    images: float = 0.0
    """The engine waited for images to be read."""
    masks: float = 0.0
    """The engine waited for masks to be made and shards to be written."""

    @contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
        """Count the time inside the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.monotonic() - started)

    def share(self, seconds: float) -> float:
        """Part of the whole time, in [0, 1]."""
        return seconds / max(self.asking + self.images + self.masks, 1e-9)

    @property
    def waiting(self) -> float:
        """Share of the time in which the engine waited, in [0, 1]."""
        return self.share(self.images + self.masks)

    def line(self, cache_hits: Mapping[str, float]) -> str:
        """One line for a person."""
        hits = ", ".join(f"{name} {share:.0%}" for name, share in cache_hits.items())
        return (
            f"engine waited {self.waiting:.1%} of the time ({self.share(self.images):.1%} for images, "
            f"{self.share(self.masks):.1%} for masks and writing)" + (f"; cache hits: {hits}" if hits else "")
        )


def _write_shards(
    job: Job, engine: Engine, proposer: Proposer, shards: Sequence[int], canary: CanaryResult, quiet: bool
) -> Counter[AnswerStatus]:
    """Ask and parse chunk by chunk.

    While the engine works on a chunk, one thread reads the images of the next ones and submits them, so that the
    engine's batch does not run empty between chunks, and another makes the masks of the one before and writes finished
    shards. Chunks are collected in order; the rows do not depend on what shared a batch with them.
    """
    tally: Counter[AnswerStatus] = Counter()
    timing = Timing()
    engine_config, plan = job.config.engine, job.plan
    chunks = chunks_of(plan, shards, engine_config.chunk_rows)
    num_ahead = 1 + -(-engine_config.ahead_rows // engine_config.chunk_rows)
    total = sum(plan.rows_of(shard) for shard in shards)
    finisher = _Finisher(job, proposer, canary)
    with (
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as finishing,
        ProgressBar(total, "priors", "pair", quiet=quiet) as bar,
    ):
        ahead = deque(reading.submit(load_chunk, job, engine, one) for one in islice(chunks, num_ahead))
        unfinished: Future[None] = finishing.submit(lambda: None)
        try:
            while ahead:
                with timing.spent_on("images"):
                    loaded = ahead.popleft().result()
                ahead.extend(reading.submit(load_chunk, job, engine, one) for one in islice(chunks, 1))
                with timing.spent_on("asking"):
                    rows, arrays = ask_chunk(job, engine, loaded)
                tally.update(STATUS_BY_CODE[int(code)] for code in rows.status_B)
                if not ahead or tally.total() >= job.config.ceiling_min_rows:
                    check_ceilings(job.config, tally, loaded.chunk.samples, rows)
                with timing.spent_on("masks"):
                    unfinished.result()
                unfinished = finishing.submit(finisher.finish, loaded, rows, arrays)
                bar.desc = f"priors [{_shares(tally)}; engine waits {timing.waiting:.0%}]"
                bar.update(len(rows.status_B))
        finally:
            for future in ahead:
                future.cancel()
        with timing.spent_on("masks"):
            unfinished.result()
    _say(timing.line(engine.cache_hits()), quiet)
    return tally


class _Finisher:
    """Makes the masks of answered chunks, in order, and writes a shard with its last chunk."""

    def __init__(self, job: Job, proposer: Proposer, canary: CanaryResult) -> None:
        self._job, self._proposer, self._canary = job, proposer, canary
        self._parts: list[dict[str, np.ndarray]] = []
        self._started = time.monotonic()

    def finish(self, loaded: LoadedChunk, rows: AnswerRows, arrays: dict[str, np.ndarray]) -> None:
        """Complete the columns of a chunk; write its shard if it is the last."""
        chunk = loaded.chunk
        self._parts.append(arrays | propose_chunk(self._proposer, loaded, rows))
        if not chunk.is_last:
            return
        columns = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        if "candidates" in columns:  # an image's are stored once a shard
            first_N = first_rows(np.array([one.image_id for one in self._job.plan.shard(chunk.shard)]))
            columns["candidates"][first_N != np.arange(len(first_N))] = 0
        info = {"fingerprint": self._job.fingerprint, "seconds": round(time.monotonic() - self._started, 3)}
        write_shard(self._job.path, chunk.shard, columns, info | {"canary_passed": self._canary.passed})
        self._parts, self._started = [], time.monotonic()
        release_freed_memory()


def propose_chunk(proposer: Proposer, loaded: LoadedChunk, rows: AnswerRows) -> dict[str, np.ndarray]:
    """The columns that the proposer gives a chunk's rows."""
    prompts = Prompts(
        box_norm_B4=rows.box_xyxy_norm_B4,
        edges_B=rows.edges_B,
        names_B=tuple(sample.file_name for sample in loaded.chunk.samples),
        images_B=tuple(loaded.images),
        continues=not loaded.chunk.is_first,
    )
    proposals = proposer.propose(prompts)
    columns = {"proposal": proposals.map_BGG, "proposer_iou": proposals.iou_B}
    if proposals.candidates_BMGG is not None:
        columns["candidates"] = proposals.candidates_BMGG
    return columns


def ask_chunk(job: Job, engine: Engine, loaded: LoadedChunk) -> tuple[AnswerRows, dict[str, np.ndarray]]:
    """Answers of a chunk, and the store's columns that follow from them alone.

    Raises:
        DataError: Every request of a chunk failed: the engine is dead, and rows of errors would be no priors.
    """
    given = collect_isolated(engine, loaded.submitted)
    if len(given) >= MIN_CHUNK_OF_ERRORS and all(answer.error is not None for answer in given):
        raise DataError(
            f"the engine failed on all {len(given)} requests from {loaded.chunk.samples[0].sample_id} on: "
            f"{given[0].error}"
        )
    remaining = iter(given)
    answers = [None if request is None else next(remaining) for request in loaded.requests]
    processed_hw = np.array(
        [(0, 0) if request is None else request.image.size[::-1] for request in loaded.requests], np.int32
    )
    rows = read_answers(
        answers,
        processed_hw,
        job.family,
        clip_tolerance=job.config.clip_tolerance,
        image_errors=loaded.errors,
    )
    columns = {
        "raw_text": encode_text_rows(rows.raw_text_B, RAW_TEXT_BYTES),
        "status": rows.status_B,
        "box_xyxy_norm": rows.box_xyxy_norm_B4,
        "box_raw_xyxy": rows.box_raw_xyxy_B4,
        "processed_hw": processed_hw,
        "confidence": rows.confidence_B,
        "edge_logprob": rows.edge_logprob_B4,
        "num_tokens": rows.num_tokens_B,
    }
    num_samples = job.config.model.num_samples
    columns |= read_samples(answers, processed_hw, job.family, num_samples, job.config.clip_tolerance)
    return rows, columns


def check_ceilings(
    config: PriorsConfig, tally: Counter[AnswerStatus], samples: Sequence[Sample], rows: AnswerRows
) -> None:
    """Stop a run whose failures say that something is wrong with the whole of it.

    Raises:
        DataError: A share above its ceiling; it names the shares and the latest failure.
    """
    errors = (AnswerStatus.IMAGE_ERROR, AnswerStatus.ENGINE_ERROR)
    num_errors = sum(tally[status] for status in errors)
    num_answers = tally.total() - num_errors
    num_without = sum(count for status, count in tally.items() if status not in errors and not status.has_box)
    for what, part, whole, name, ceiling in (
        ("rows had an error", num_errors, tally.total(), "error_ceiling", config.error_ceiling),
        (
            "answers held no box",
            num_without,
            num_answers,
            "answer_failure_ceiling",
            config.answer_failure_ceiling,
        ),
    ):
        if part > ceiling * whole:
            raise DataError(
                f"stopped: {part} of {whole} {what} ({_shares(tally)}); {name} is {ceiling}. "
                f"{_last_failure(samples, rows)}. Finished shards are kept; set {name}=1 to go on regardless"
            )


def _last_failure(samples: Sequence[Sample], rows: AnswerRows) -> str:
    for row in range(len(samples) - 1, -1, -1):
        status = STATUS_BY_CODE[int(rows.status_B[row])]
        if not status.has_box:
            where = f"{samples[row].sample_id} ({samples[row].file_name})"
            return f"Latest: {where} {status}: {rows.raw_text_B[row][:120]!r}"
    return "None in the latest chunk"


def _shares(tally: Counter[AnswerStatus]) -> str:
    whole = max(tally.total(), 1)
    return ", ".join(f"{status} {count / whole:.1%}" for status, count in tally.most_common())


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
