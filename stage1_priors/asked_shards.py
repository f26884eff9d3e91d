"""Shards with rows that the model is asked about: images read ahead, questions submitted, answers parsed, masks made.

While the engine works on a chunk of rows, one thread reads the images of the next ones and submits them, and another
makes the masks of the one before and writes finished shards.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from shared.errors import DataError
from shared.runlog import ProgressBar, say
from shared.stopping import STOPPED, stop_flag
from shared.store.schema import RAW_TEXT_BYTES, encode_text_rows
from shared.types import AnswerStatus
from stage1_priors.answers import AnswerRows, read_answers
from stage1_priors.attempts import GIVEN_UP, PATIENCE, Attempts
from stage1_priors.canary import CanaryResult
from stage1_priors.ceilings import check_ceilings, shares_of, told_ceilings
from stage1_priors.chunks import Bounds, Chunk, bytes_of_images, chunks_of
from stage1_priors.engine import Answer, Engine, collect_isolated
from stage1_priors.finishing import Finisher
from stage1_priors.job import Job
from stage1_priors.loading import LoadedChunk, load_noted
from stage1_priors.memory import MemoryFull
from stage1_priors.open_shards import open_shards
from stage1_priors.proposers import Proposer
from stage1_priors.reuse import Reusable, statuses_of
from stage1_priors.sampled_boxes import read_samples

MIN_CHUNK_OF_ERRORS = 8
"""A chunk of at least this many requests that all fail means a dead engine: the run stops whatever the ceilings."""


ALONE = Bounds(rows=1, num_bytes=1, num_ahead=1)
"""One row at a time."""


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
    shared a batch with them. Shards that were begun most often and never finished come last, and at last row by row
    (`attempts.py`).

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
    total = sum(job.plan.rows_of(shard) for shard in shards)
    with (
        Attempts(job.path, shards) as attempts,
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as finishing,
        ProgressBar(total, "priors", "pair", quiet=quiet) as bar,
        stop_flag() as told_to_stop,
    ):
        open_ones = open_shards(job, attempts.usual(), rewriting=retrying)
        finisher = Finisher(job, proposer, known, canary, open_ones, attempts, retrying)
        asker = _Asker(
            job=job,
            engine=engine,
            proposer=proposer,
            known=known,
            known_tally=known.statuses(),
            attempts=attempts,
            finisher=finisher,
            judging=not retrying,
            threads=(reading, finishing),
            bar=bar,
            quiet=quiet,
            told_to_stop=told_to_stop,
        )
        asker.ask(open_ones, Bounds.of(job.config))
        if suspect := attempts.suspect():
            say(
                f"{len(suspect)} shards were begun {PATIENCE} times and never finished: now row by row", quiet
            )
            open_ones.add(suspect)
            asker.ask(open_ones, ALONE)
    say(asker.timing.line(engine.cache_hits()), quiet)
    say(open_ones.line(), quiet or not open_ones.others)
    if asker.is_ending() and (left := {*shards} - finisher.written - {*open_ones.others}):
        to_do = f"{len(left)} of {len(shards)} shards to do"
        if told_to_stop():
            say(f"stopped at a signal: {to_do}; the same command goes on", quiet)
            raise SystemExit(STOPPED)
        raise MemoryFull(
            f"{finisher.full_gb:.2f} GiB are taken, engine.memory_gb is {job.config.engine.memory_gb}: going on in a "
            f"new process, {to_do}"
        )
    return asker.tally


@dataclass(kw_only=True)
class _Asker:
    """Asks about shards, with chunks in hand from being read until their masks are made."""

    job: Job
    """Gives rows, images and limits."""
    engine: Engine
    """Running."""
    proposer: Proposer
    """Says what is kept of images."""
    known: Reusable
    """Rows that are not asked for."""
    known_tally: Counter[AnswerStatus]
    """Their answers, counted with those that are asked for, which may be what failed before."""
    attempts: Attempts
    """Notes of what is begun."""
    finisher: Finisher
    """Makes masks and writes."""
    judging: bool
    """Whether ceilings count."""
    threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor]
    """Of one thread each: the one that reads and submits, and the one that makes masks and writes."""
    bar: ProgressBar
    """Shows how far it is."""
    quiet: bool
    """Whether nothing is said."""
    told_to_stop: Callable[[], bool]
    """Whether a signal has arrived."""
    timing: Timing = field(default_factory=Timing)
    """Where the time went."""
    tally: Counter[AnswerStatus] = field(default_factory=Counter)
    """What became of the rows that were asked for."""
    fresh: Counter[AnswerStatus] = field(default_factory=Counter)
    """Of those that nobody has asked for, or that did not fail then."""
    ahead: deque[tuple[Chunk, Future[LoadedChunk]]] = field(default_factory=deque)
    """What is being read and submitted."""

    def is_ending(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.told_to_stop() or self.finisher.full_gb > 0

    def ask(self, shards: Iterable[int], bounds: Bounds) -> None:
        """Ask about shards and write them; with `ALONE` a row is in nobody's hands before the one before it is done."""
        job, timing, ahead = self.job, self.timing, self.ahead
        bytes_of = bytes_of_images(job.config, job.family, job.rules, self.proposer.kept_hw)
        chunks = chunks_of(job.plan, self.known, shards, bounds, bytes_of)
        reading, finishing = self.threads
        unfinished: Future[None] = finishing.submit(lambda: None)

        def read_ahead() -> None:
            while (
                not self.is_ending()
                and bounds.has_room([chunk for chunk, _ in ahead])
                and (chunk := next(chunks, None))
            ):
                told = (job, self.engine, self.proposer, self.attempts, chunk, bounds is ALONE)
                ahead.append((chunk, reading.submit(load_noted, *told)))

        try:
            read_ahead()
            while ahead:
                with timing.spent_on("images"):
                    loaded = ahead.popleft()[1].result()
                if self._is_in_vain(loaded.chunk):
                    break
                if bounds is not ALONE:
                    read_ahead()
                with timing.spent_on("asking"):
                    rows, arrays = ask_chunk(job, self.engine, loaded)
                if self._is_in_vain(loaded.chunk):
                    break
                self._judge(loaded.chunk, rows)
                with timing.spent_on("masks"):
                    unfinished.result()
                chunk, images = loaded.chunk, loaded.images
                del loaded  # what the model saw is not for the masks
                unfinished = finishing.submit(self.finisher.finish, chunk, images, rows, arrays)
                self.bar.desc = f"priors [{shares_of(self.tally)}; engine waits {timing.waiting:.0%}]"
                self.bar.update(len(chunk.known))
                if bounds is ALONE:
                    unfinished.result()
                    read_ahead()
        finally:
            for _, future in ahead:
                future.cancel()
            ahead.clear()
        with timing.spent_on("masks"):
            unfinished.result()

    def _is_in_vain(self, chunk: Chunk) -> bool:
        """Whether a run that is to end has nothing in hand that completes a shard; the rest is dropped."""
        if not self.is_ending():
            return False
        while self.ahead and not self.ahead[-1][0].is_last:
            self.ahead.pop()[1].cancel()
        return not self.ahead and not chunk.is_last

    def _judge(self, chunk: Chunk, rows: AnswerRows) -> None:
        """Count what became of a chunk's rows; raises DataError above a ceiling.

        A small trial of the first pairs is there to be looked at, whatever became of them: what would stop a run of all
        is said at its end.
        """
        config = self.job.config
        self.tally.update(statuses_of(rows.status_B))
        self.fresh.update(statuses_of(rows.status_B[~chunk.failed_A]))
        if not self.judging:
            return
        judged = self.known_tally + self.tally
        is_end = not self.ahead and chunk.is_last
        are_many = judged.total() >= config.ceiling_min_rows
        if self.job.plan.left_out and is_end and not are_many:
            for line in told_ceilings(config, judged, chunk.asked, rows):
                say(f"note: {line}", self.quiet)
        elif is_end or are_many:
            check_ceilings(config, judged, chunk.asked, rows)
        if self.fresh.total() >= config.ceiling_min_rows:
            check_ceilings(config, self.fresh, chunk.asked, rows)


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
    if loaded.is_given_up:
        answers = [Answer(text="", error=GIVEN_UP)]
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
