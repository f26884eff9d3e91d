"""The stage 1 run: plan, ask, parse, propose, write; one shard after the other, resumable after any kill.

A thin shell around pure parts. A run whose store is complete returns before torch or an engine is imported. Several
independent processes may share a store: each takes the shards with its own index modulo their number, and a shard has
one writer.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shared.config import config_to_dict
from shared.errors import DataError
from shared.runlog import ProgressBar
from shared.store.schema import (
    EXPRESSION_BYTES,
    RAW_TEXT_BYTES,
    SAMPLE_ID_BYTES,
    encode_text_rows,
    prior_fields,
    sample_fields,
)
from shared.store.writer import create_store, write_shard
from shared.types import STATUS_BY_CODE, AnswerStatus, Sample
from stage1_priors.answers import AnswerRows, make_request, read_answers
from stage1_priors.canary import CanaryResult, run_canary
from stage1_priors.config import PriorsConfig
from stage1_priors.engine import ENGINES, Engine, EngineFactory, Request, generate_isolated
from stage1_priors.job import Job, changes, describe_plan, make_job, pending_of
from stage1_priors.plan import Plan, shards_of_worker
from stage1_priors.proposals import propose
from stage1_priors.samples import read_samples

__all__ = ["describe_plan", "run_priors"]

MIN_CHUNK_OF_ERRORS = 8
"""A chunk of at least this many requests that all fail means a dead engine: the run stops whatever the ceilings."""


def run_priors(
    config: PriorsConfig,
    *,
    worker: int = 0,
    num_workers: int = 1,
    engine_factory: EngineFactory | None = None,
    quiet: bool = False,
) -> Path:
    """Write what is missing of a store, and return its path.

    Args:
        config: The recipe.
        worker: Number of this process among `num_workers` independent ones.
        num_workers: Processes that share the store; the rows do not depend on it.
        engine_factory: Another engine than `config.engine.kind` names (tests).
        quiet: No progress on standard error.

    Raises:
        DataError: Unusable data, a failed canary, or more failures than the ceilings allow.
    """
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
    if num_workers > 1:
        _separate_from_other_workers(worker)
    factory = engine_factory or ENGINES[config.engine.kind]
    engine = factory(job.model_folder, job.family, config.model, config.engine)
    try:
        canary = run_canary(engine, job.family, job.rules, config.canary, config.clip_tolerance)
        if canary.passed is not None:
            _say(canary.line() + ("" if canary.passed else " - going on, as canary.mode=warn asks"), quiet)
        _create(job, canary)
        tally = _write_shards(job, engine, mine, canary, quiet)
    finally:
        engine.close()
    seconds = time.monotonic() - started
    _say(f"{job.path}: {sum(tally.values())} pairs in {seconds:.0f} s ({_shares(tally)})", quiet)
    return job.path


def _separate_from_other_workers(worker: int) -> None:
    """Own port range and compile cache for this process, unless the environment says otherwise."""
    os.environ.setdefault("VLLM_PORT", str(20_000 + 64 * worker))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vllm" / f"worker-{worker}"
    os.environ.setdefault("VLLM_CACHE_ROOT", str(cache))


def _create(job: Job, canary: CanaryResult) -> None:
    config, samples = job.config, job.plan.samples
    code = {split: index for index, split in enumerate(job.plan.splits)}
    static = {
        "sample_id": encode_text_rows([s.sample_id for s in samples], SAMPLE_ID_BYTES, strict=True),
        "expression": encode_text_rows([s.expression for s in samples], EXPRESSION_BYTES),
        "image_id": np.array([s.image_id for s in samples], np.int64),
        "split": np.array([code[s.split] for s in samples], np.uint8),
        "image_hw": np.array([(s.height, s.width) for s in samples], np.int32),
    }
    attrs = {
        "fingerprint": job.fingerprint,
        "fingerprint_fields": job.identity,
        "data": {
            "root": config.data.root,
            "dataset": config.data.dataset,
            "split_by": config.data.split_by,
            "fingerprint": job.dataset.fingerprint(),
        },
        "splits": list(job.plan.splits),
        "grid": config.proposer.grid,
        "config": config_to_dict(config),
        "canary": canary.to_dict(),
        "logprobs": {"mode": "raw", "temperature": 0.0, "top": config.model.top_logprobs},
    }
    fields = prior_fields(config.proposer.grid) + sample_fields(config.model.num_samples)
    create_store(job.path, num_rows=len(samples), fields=fields, attrs=attrs, static=static)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows handed to the engine in one call."""

    shard: int
    """Shard they belong to."""
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


def chunks_of(plan: Plan, shards: Sequence[int], rows: int) -> Iterator[Chunk]:
    """The shards cut into chunks of at most `rows` rows; a chunk never spans two shards."""
    for shard in shards:
        samples = plan.shard(shard)
        for start in range(0, len(samples), rows):
            part = samples[start : start + rows]
            yield Chunk(shard=shard, is_last=start + rows >= len(samples), samples=part)


def load_chunk(job: Job, chunk: Chunk) -> LoadedChunk:
    """Read and resize the images of a chunk, each image once. An unreadable image is an error of its rows only."""
    images: dict[str, Image.Image | str] = {}
    requests: list[Request | None] = []
    errors: list[str] = []
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
            continue
        requests.append(make_request(image, sample.expression, job.family, job.rules, sample.sample_id))
        errors.append("")
    return LoadedChunk(chunk=chunk, requests=requests, errors=errors)


def _write_shards(
    job: Job, engine: Engine, shards: Sequence[int], canary: CanaryResult, quiet: bool
) -> Counter[AnswerStatus]:
    """Ask, parse, propose and write shard by shard; the next chunk's images are read while the engine works."""
    tally: Counter[AnswerStatus] = Counter()
    parts: list[dict[str, np.ndarray]] = []
    chunks = list(chunks_of(job.plan, shards, job.config.engine.chunk_rows))
    total = sum(len(chunk.samples) for chunk in chunks)
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool, ProgressBar(total, "priors", "pair", quiet=quiet) as bar:
        future: Future[LoadedChunk] = pool.submit(load_chunk, job, chunks[0])
        for index, chunk in enumerate(chunks):
            loaded = future.result()
            if index + 1 < len(chunks):
                future = pool.submit(load_chunk, job, chunks[index + 1])
            rows, arrays = ask_chunk(job, engine, loaded)
            parts.append(arrays)
            tally.update(STATUS_BY_CODE[int(code)] for code in rows.status_B)
            last = index + 1 == len(chunks)
            if last or tally.total() >= job.config.ceiling_min_rows:
                check_ceilings(job.config, tally, chunk.samples, rows)
            if chunk.is_last:
                columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                info = {"fingerprint": job.fingerprint, "seconds": round(time.monotonic() - started, 3)}
                write_shard(job.path, chunk.shard, columns, info | {"canary_passed": canary.passed})
                parts, started = [], time.monotonic()
            bar.desc = f"priors [{_shares(tally)}]"
            bar.update(len(chunk.samples))
    return tally


def ask_chunk(job: Job, engine: Engine, loaded: LoadedChunk) -> tuple[AnswerRows, dict[str, np.ndarray]]:
    """Answers of a chunk, and the store's columns for its rows.

    Raises:
        DataError: Every request of a chunk failed: the engine is dead, and rows of errors would be no priors.
    """
    asked = [request for request in loaded.requests if request is not None]
    given = generate_isolated(engine, asked)
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
        "proposal": propose(rows.box_xyxy_norm_B4, rows.edges_B, job.config.proposer),
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
