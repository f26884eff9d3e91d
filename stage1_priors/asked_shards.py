"""Shards with rows that the model is asked about: images read ahead, questions submitted, answers parsed, masks made.

While the engine works on a chunk of rows, one thread reads the images of the next ones and submits them, and another
makes the masks of the one before and writes finished shards.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.runlog import ProgressBar, say
from shared.stopping import STOPPED, stop_flag
from shared.store.schema import RAW_TEXT_BYTES, encode_text_rows
from shared.types import AnswerStatus, Sample
from stage1_priors.answers import AnswerRows, processed_image, read_answers, request_about
from stage1_priors.canary import CanaryResult
from stage1_priors.ceilings import check_ceilings, shares_of
from stage1_priors.chunks import Bounds, Chunk, bytes_of_images, chunks_of
from stage1_priors.engine import Engine, Request, Submitted, collect_isolated, submit_isolated
from stage1_priors.finishing import Finisher
from stage1_priors.job import Job
from stage1_priors.memory import MemoryFull
from stage1_priors.proposers import Proposer
from stage1_priors.reuse import Reusable, statuses_of
from stage1_priors.sampled_boxes import read_samples

MIN_CHUNK_OF_ERRORS = 8
"""A chunk of at least this many requests that all fail means a dead engine: the run stops whatever the ceilings."""


@dataclass(frozen=True, kw_only=True)
class LoadedChunk:
    """A chunk with the images read and resized that the model is asked about."""

    chunk: Chunk
    """The rows."""
    requests: list[Request | None]
    """One per asked row; None where the image could not be read."""
    errors: list[str]
    """Why there is no request, per asked row."""
    images: list[Image.Image | None]
    """What the proposer has kept of each asked row's image."""
    submitted: Submitted
    """The requests there are, in the engine's hands."""


@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """What is left of an image that was read: the original itself is let go of."""

    processed: Image.Image
    """What the model sees."""
    kept: Image.Image | None
    """What the proposer has kept."""


def load_image(job: Job, proposer: Proposer, sample: Sample) -> LoadedImage | str:
    """Read and resize the image of a sample; why it cannot be read if it cannot."""
    try:
        original = job.dataset.image(sample)
    except DataError as error:
        return str(error)
    return LoadedImage(
        processed=processed_image(original, job.family, job.rules), kept=proposer.kept(original)
    )


def load_chunk(job: Job, engine: Engine, proposer: Proposer, chunk: Chunk) -> LoadedChunk:
    """Read and resize the images a chunk asks about, each image once, and submit its requests.

    An unreadable image is an error of its rows only.
    """
    loaded: dict[str, LoadedImage | str] = {}
    requests: list[Request | None] = []
    errors: list[str] = []
    kept: list[Image.Image | None] = []
    for sample in chunk.asked:
        if sample.file_name not in loaded:
            loaded[sample.file_name] = load_image(job, proposer, sample)
        image = loaded[sample.file_name]
        if isinstance(image, str):
            requests.append(None)
            errors.append(image)
            kept.append(None)
            continue
        requests.append(
            request_about(image.processed, sample.expression, job.family, job.rules, sample.sample_id)
        )
        errors.append("")
        kept.append(image.kept)
    submitted = submit_isolated(engine, [request for request in requests if request is not None])
    return LoadedChunk(chunk=chunk, requests=requests, errors=errors, images=kept, submitted=submitted)


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


def write_asked_shards(
    job: Job,
    engine: Engine,
    proposer: Proposer,
    known: Reusable,
    shards: Sequence[int],
    canary: CanaryResult,
    quiet: bool,
    retrying: bool = False,
) -> Counter[AnswerStatus]:
    """Ask and parse chunk by chunk; every shard has a row to ask for.

    The engine's batch does not run empty between chunks. Chunks are collected in order; the rows do not depend on what
    shared a batch with them.

    Args:
        job: Gives rows, images and store.
        engine: Running.
        proposer: Loaded.
        known: Rows that are taken over.
        shards: What to write; `known` lacks a row of each.
        canary: What the model made of the drawn scenes.
        quiet: No progress.
        retrying: The shards are finished, `known` holds their rows but for the failed ones, and no ceiling counts.

    Returns:
        What became of the rows that were asked for.

    Raises:
        SystemExit: Status `STOPPED`, after a signal, with shards left to do; those that could be completed are written.
        MemoryFull: The same where the process had grown beyond `engine.memory_gb`.
    """
    tally: Counter[AnswerStatus] = Counter()
    fresh: Counter[AnswerStatus] = Counter()  # of rows that nobody has asked for, or that did not fail then
    known_tally = known.statuses()  # counted with the rest: those that are asked may be what failed before
    timing = Timing()
    bounds = Bounds.of(job.config)
    bytes_of = bytes_of_images(job.config, job.family, job.rules, proposer.kept_hw)
    chunks = chunks_of(job.plan, known, shards, bounds, bytes_of)
    total = sum(job.plan.rows_of(shard) for shard in shards)
    finisher = Finisher(job, proposer, known, canary, retrying)
    with (
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as finishing,
        ProgressBar(total, "priors", "pair", quiet=quiet) as bar,
        stop_flag() as told_to_stop,
    ):
        ahead: deque[tuple[Chunk, Future[LoadedChunk]]] = deque()
        unfinished: Future[None] = finishing.submit(lambda: None)

        def is_ending() -> bool:
            return told_to_stop() or finisher.full_gb > 0

        def read_ahead() -> None:
            while (
                not is_ending()
                and bounds.has_room([chunk for chunk, _ in ahead])
                and (chunk := next(chunks, None))
            ):
                ahead.append((chunk, reading.submit(load_chunk, job, engine, proposer, chunk)))

        def is_in_vain(chunk: Chunk) -> bool:
            """Whether a run that is to end has nothing in hand that completes a shard; the rest is dropped."""
            if not is_ending():
                return False
            while ahead and not ahead[-1][0].is_last:
                ahead.pop()[1].cancel()
            return not ahead and not chunk.is_last

        try:
            read_ahead()
            while ahead:
                with timing.spent_on("images"):
                    loaded = ahead.popleft()[1].result()
                if is_in_vain(loaded.chunk):
                    break
                read_ahead()
                with timing.spent_on("asking"):
                    rows, arrays = ask_chunk(job, engine, loaded)
                if is_in_vain(loaded.chunk):
                    break
                tally.update(statuses_of(rows.status_B))
                fresh.update(statuses_of(rows.status_B[~loaded.chunk.failed_A]))
                judged = known_tally + tally if not retrying else Counter[AnswerStatus]()
                if (not ahead and loaded.chunk.is_last) or judged.total() >= job.config.ceiling_min_rows:
                    check_ceilings(job.config, judged, loaded.chunk.asked, rows)
                if fresh.total() >= job.config.ceiling_min_rows:
                    check_ceilings(job.config, fresh, loaded.chunk.asked, rows)
                with timing.spent_on("masks"):
                    unfinished.result()
                chunk, images = loaded.chunk, loaded.images
                del loaded  # what the model saw is not for the masks
                unfinished = finishing.submit(finisher.finish, chunk, images, rows, arrays)
                bar.desc = f"priors [{shares_of(tally)}; engine waits {timing.waiting:.0%}]"
                bar.update(len(chunk.known))
        finally:
            for _, future in ahead:
                future.cancel()
        with timing.spent_on("masks"):
            unfinished.result()
    say(timing.line(engine.cache_hits()), quiet)
    if is_ending() and (left := {*shards} - finisher.written):
        to_do = f"{len(left)} of {len(shards)} shards to do"
        if told_to_stop():
            say(f"stopped at a signal: {to_do}; the same command goes on", quiet)
            raise SystemExit(STOPPED)
        raise MemoryFull(
            f"{finisher.full_gb:.2f} GiB are taken, engine.memory_gb is {job.config.engine.memory_gb}: going on in a "
            f"new process, {to_do}"
        )
    return tally


def ask_chunk(job: Job, engine: Engine, loaded: LoadedChunk) -> tuple[AnswerRows, dict[str, np.ndarray]]:
    """Answers of a chunk, and the store's columns that follow from them alone, for the rows that were asked for.

    Raises:
        DataError: Every request of a chunk failed: the engine is dead, and rows of errors would be no priors.
    """
    given = collect_isolated(engine, loaded.submitted)
    all_failed = len(given) >= MIN_CHUNK_OF_ERRORS and all(answer.error is not None for answer in given)
    if all_failed and not loaded.chunk.failed_A.all():
        raise DataError(
            f"the engine failed on all {len(given)} requests from {loaded.chunk.asked[0].sample_id} on: "
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
