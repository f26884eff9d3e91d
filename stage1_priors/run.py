"""The stage 1 run: plan, ask, parse, propose, write; one shard after the other, resumable after any kill.

A thin shell around pure parts. A run whose store is complete returns before torch or an engine is imported. Several
independent processes may share a store: each takes the shards with its own index modulo their number, and a shard has
one writer.

Told to stop, by SIGTERM or SIGUSR1, a run reads no further, writes the shards that what it has in hand completes, and
ends with the status of a batch job that wants to go on. Before its first question nothing is in hand, and it ends at
once, as it does after Ctrl-C and SIGKILL at any time.
"""

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.errors import DataError
from shared.gpu_build import require_usable_gpus
from shared.runlog import ProgressBar
from shared.stopping import STOPPED, stop_flag
from shared.store.schema import RAW_TEXT_BYTES, encode_text_rows
from shared.types import STATUS_BY_CODE, AnswerStatus, Sample
from stage1_priors.answers import AnswerRows, processed_image, read_answers, request_about
from stage1_priors.canary import CanaryResult, run_canary
from stage1_priors.chunks import Bounds, Chunk, bytes_of_images, chunks_of
from stage1_priors.config import ImportConfig, PriorsConfig
from stage1_priors.devices import visible_gpus
from stage1_priors.engine import (
    Engine,
    EngineFactory,
    Request,
    Submitted,
    collect_isolated,
    engine_versions,
    submit_isolated,
)
from stage1_priors.engines import ENGINES
from stage1_priors.import_masks import import_masks
from stage1_priors.job import (
    Job,
    changes,
    create,
    describe_plan,
    find_known_answers,
    find_known_rows,
    make_job,
    pending_of,
    require_engine,
)
from stage1_priors.known_shards import copy_shards, found_with, mask_shards, propose_chunk, write_columns
from stage1_priors.memory import release_freed_memory
from stage1_priors.plan import Plan, shards_of_worker
from stage1_priors.proposers import PROPOSERS, Proposer
from stage1_priors.reuse import Reusable, merge_rows, nothing_reusable, statuses_of
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
    expected: Path | None = None,
    engine_factory: EngineFactory | None = None,
    quiet: bool = False,
) -> Path:
    """Write what is missing of a store, and return its path.

    Args:
        config: The recipe; masks from outside are read by `import_masks`, without any engine.
        worker: Number of this process among `num_workers` independent ones.
        num_workers: Processes that share the store; the rows do not depend on it.
        expected: The store that was planned; another one is not begun.
        engine_factory: Another engine than `config.engine.kind` names (tests).
        quiet: No progress on standard error.

    Raises:
        DataError: Unusable data, an engine that is not installed, another store than expected, GPUs that torch cannot
            use, a failed canary, or more failures than the ceilings allow.
        SystemExit: Status `STOPPED`, after a signal.
    """
    if isinstance(config, ImportConfig):
        return import_masks(config, worker=worker, num_workers=num_workers, quiet=quiet)
    started = time.monotonic()
    if engine_factory is None:
        require_engine(config)
    job = make_job(config)
    if expected is not None and job.path != expected:
        versions = ", ".join(engine_versions(config.engine.kind).values())
        raise DataError(
            f"{expected} was planned, and this process would write {job.path}: models, data or packages differ here "
            f"({versions}). Submit from the environment that the jobs run in, or name its python and container in "
            "cluster.toml"
        )
    pending = pending_of(job)
    mine = shards_of_worker(pending, worker, num_workers)
    if not mine:
        _say(f"{job.path}: nothing to do ({len(pending)} shards pending elsewhere)", quiet)
        return job.path
    if not job.path.exists():
        for line in changes(job):
            _say(line, quiet)
    if num_workers > 1 or "SLURM_JOB_ID" in os.environ:
        separate_from_other_workers(worker, job.fingerprint, os.environ)
    known = find_known_rows(job)
    for line in known.unusable:
        _say(f"no rows are taken over from a store that cannot be read: {line}", quiet)
    if known.num:
        _say(f"{job.path}: {_taken_over(known, job.plan)}", quiet)
    whole = _all_known(known, job.plan, mine)
    answered = find_known_answers(job) if len(whole) < len(mine) else nothing_reusable(len(job.plan.samples))
    to_mask = sorted({*_all_known(answered, job.plan, mine)} - {*whole})
    asking = sorted({*mine} - {*whole} - {*to_mask})
    if to_mask:
        _say(f"{job.path}: {_answered(answered, job.plan, to_mask)}", quiet)
    if not asking:
        create(job, found_with(known, answered))
        copy_shards(job, known, whole, quiet)
        if to_mask:
            require_usable_gpus(", ".join(visible_gpus()))
            with closing(PROPOSERS[config.proposer.kind](config.proposer, job.proposer_folder)) as proposer:
                proposer.load()
                tally = mask_shards(job, proposer, answered, to_mask, quiet)
            _say_done(job, tally, started, quiet)
        return job.path
    if engine_factory is None:
        require_usable_gpus(", ".join(visible_gpus()))
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
        copy_shards(job, known, whole, quiet)
        tally = mask_shards(job, proposer, answered, to_mask, quiet)
        tally += _write_shards(job, engine, proposer, known, asking, canary, quiet)
    _say_done(job, tally, started, quiet)
    return job.path


def _all_known(known: Reusable, plan: Plan, shards: Sequence[int]) -> list[int]:
    """Shards of which every row is known."""
    return [shard for shard in shards if known.known(*plan.bounds(shard)).all()]


def _say_done(job: Job, tally: Counter[AnswerStatus], started: float, quiet: bool) -> None:
    seconds = time.monotonic() - started
    _say(f"{job.path}: {sum(tally.values())} pairs in {seconds:.0f} s ({_shares(tally)})", quiet)


def _answered(answered: Reusable, plan: Plan, shards: Sequence[int]) -> str:
    """Of how many rows the masks alone are made, for a person."""
    counts = Counter[str]()
    for shard in shards:
        counts.update(answered.counts(*plan.bounds(shard)))
    return (
        f"masks are made anew of {counts.total()} answers that are known ({_by_store(counts)}); nobody is asked for "
        "them"
    )


def _taken_over(known: Reusable, plan: Plan) -> str:
    """How many rows are not asked for, for a person."""
    num = len(plan.samples)
    return f"{known.num} of {num} pairs are known already ({_by_store(known.counts(0, num))})"


def _by_store(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} from {name}" for name, count in counts.items())


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


def _write_shards(
    job: Job,
    engine: Engine,
    proposer: Proposer,
    known: Reusable,
    shards: Sequence[int],
    canary: CanaryResult,
    quiet: bool,
) -> Counter[AnswerStatus]:
    """Ask and parse chunk by chunk; every shard has a row to ask for.

    While the engine works on a chunk, one thread reads the images of the next ones and submits them, so that the
    engine's batch does not run empty between chunks, and another makes the masks of the one before and writes finished
    shards. Chunks are collected in order; the rows do not depend on what shared a batch with them.

    Returns:
        What became of the rows that were asked for.

    Raises:
        SystemExit: Status `STOPPED`, after a signal, with shards left to do; those that could be completed are written.
    """
    tally: Counter[AnswerStatus] = Counter()
    fresh: Counter[AnswerStatus] = Counter()  # of rows that nobody has asked for, or that did not fail then
    known_tally = known.statuses()  # counted with the rest: those that are asked may be what failed before
    timing = Timing()
    bounds = Bounds.of(job.config)
    bytes_of = bytes_of_images(job.config, job.family, job.rules, proposer.kept_hw)
    chunks = chunks_of(job.plan, known, shards, bounds, bytes_of)
    total = sum(job.plan.rows_of(shard) for shard in shards)
    finisher = _Finisher(job, proposer, known, canary)
    with (
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as finishing,
        ProgressBar(total, "priors", "pair", quiet=quiet) as bar,
        stop_flag() as told_to_stop,
    ):
        ahead: deque[tuple[Chunk, Future[LoadedChunk]]] = deque()
        unfinished: Future[None] = finishing.submit(lambda: None)

        def read_ahead() -> None:
            while (
                not told_to_stop()
                and bounds.has_room([chunk for chunk, _ in ahead])
                and (chunk := next(chunks, None))
            ):
                ahead.append((chunk, reading.submit(load_chunk, job, engine, proposer, chunk)))

        def is_in_vain(chunk: Chunk) -> bool:
            """Whether a run that was told to stop has nothing in hand that completes a shard; the rest is dropped."""
            if not told_to_stop():
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
                judged = known_tally + tally
                if (not ahead and loaded.chunk.is_last) or judged.total() >= job.config.ceiling_min_rows:
                    check_ceilings(job.config, judged, loaded.chunk.asked, rows)
                if fresh.total() >= job.config.ceiling_min_rows:
                    check_ceilings(job.config, fresh, loaded.chunk.asked, rows)
                with timing.spent_on("masks"):
                    unfinished.result()
                chunk, images = loaded.chunk, loaded.images
                del loaded  # what the model saw is not for the masks
                unfinished = finishing.submit(finisher.finish, chunk, images, rows, arrays)
                bar.desc = f"priors [{_shares(tally)}; engine waits {timing.waiting:.0%}]"
                bar.update(len(chunk.known))
        finally:
            for _, future in ahead:
                future.cancel()
        with timing.spent_on("masks"):
            unfinished.result()
    _say(timing.line(engine.cache_hits()), quiet)
    if told_to_stop() and (left := {*shards} & {*pending_of(job)}):
        _say(
            f"stopped at a signal: {len(left)} of {len(shards)} shards to do; the same command goes on", quiet
        )
        raise SystemExit(STOPPED)
    return tally


class _Finisher:
    """Makes the masks of answered chunks, in order, and writes a shard with its last chunk."""

    def __init__(self, job: Job, proposer: Proposer, known: Reusable, canary: CanaryResult) -> None:
        self._job, self._proposer, self._known, self._canary = job, proposer, known, canary
        self._parts: list[dict[str, np.ndarray]] = []
        self._started = time.monotonic()

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
        info: dict[str, Any] = {"seconds": round(time.monotonic() - self._started, 3)}
        bounds = self._job.plan.bounds(chunk.shard)
        info["canary_passed"] = self._known.canary_passed(*bounds, self._canary.passed)
        if reused := self._known.counts(*bounds):
            info["reused"] = reused
        write_columns(self._job, chunk.shard, columns, info)
        self._parts, self._started = [], time.monotonic()
        release_freed_memory()


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
