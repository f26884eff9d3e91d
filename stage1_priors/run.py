"""The stage 1 run: plan, ask, parse, propose, write; one shard after the other, resumable after any kill.

A thin shell around pure parts. A run whose store is complete returns before torch or an engine is imported. Several
independent processes may share a store: each has shards of its own (`plan.shards_of_worker`), and a shard has one
writer. What another run on the same store has written by the time a shard is to be begun is left out.

Told to stop, by SIGTERM or SIGUSR1, a run reads no further, writes the shards that what it has in hand completes, and
ends with the status of a batch job that wants to go on. Before its first question nothing is in hand, and it ends at
once, as it does after Ctrl-C and SIGKILL at any time.
"""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DataError
from shared.gpu_build import require_usable_gpus
from shared.runlog import say
from shared.types import AnswerStatus
from stage1_priors.asked_shards import write_asked_shards
from stage1_priors.canary import run_canary
from stage1_priors.ceilings import shares_of
from stage1_priors.config import ImportConfig, PriorsConfig
from stage1_priors.devices import require_gpus, visible_gpus
from stage1_priors.engine import Engine, EngineFactory, engine_versions
from stage1_priors.engines import ENGINES
from stage1_priors.failures import NO_MODEL, rows_beside, shards_to_retry, told_failures
from stage1_priors.identity import graph_fingerprint
from stage1_priors.import_masks import import_masks
from stage1_priors.job import (
    Job,
    changes,
    create,
    find_known_answers,
    find_known_rows,
    make_job,
    pending_of,
    require_engine,
)
from stage1_priors.known_shards import copy_shards, found_with, mask_shards
from stage1_priors.memory_left import require_memory
from stage1_priors.plan import Plan, shards_of_worker
from stage1_priors.preflight import replaced_images, require_images, require_room_for
from stage1_priors.proposers import PROPOSERS, Proposer
from stage1_priors.reuse import Reusable, nothing_reusable
from stage1_priors.starting import starting
from stage1_priors.worker_env import separate_from_other_workers


def run_priors(
    config: PriorsConfig | ImportConfig,
    *,
    worker: int = 0,
    num_workers: int = 1,
    dealt: Sequence[int] | None = None,
    expected: Path | None = None,
    retry_failed: bool = False,
    engine_factory: EngineFactory | None = None,
    quiet: bool = False,
) -> Path:
    """Write what is missing of a store, and return its path.

    Args:
        config: The recipe; masks from outside are read by `import_masks`, without any engine.
        worker: Number of this process among `num_workers` independent ones.
        num_workers: Processes that share the store; the rows do not depend on it.
        dealt: Shards that they divide evenly, the same list for all of them; None: as `shards_of_worker` says.
        expected: The store that was planned; another one is not begun.
        retry_failed: Ask instead for the rows of finished shards whose image or request failed, and leave all other
            rows as they are.
        engine_factory: Another engine than `config.engine.kind` names (tests).
        quiet: No progress on standard error.

    Raises:
        DataError: Unusable data, an engine that is not installed or does not start (its traceback is on standard error,
            if not quiet), another store than expected, GPUs that torch cannot use, pairs too long for the model, a
            failed canary, too many lost images, more failures than the ceilings allow, or failed rows asked for of no
            store.
        SystemExit: Status `STOPPED`, after a signal.
        MemoryFull: The process has grown beyond `engine.memory_gb`; another one goes on.
    """
    if isinstance(config, ImportConfig):
        if retry_failed:
            raise DataError(NO_MODEL)
        return import_masks(config, worker=worker, num_workers=num_workers, dealt=dealt, quiet=quiet)
    started = time.monotonic()
    if engine_factory is None:
        require_engine(config)
    job = make_job(config, quiet=quiet)
    if expected is not None and job.path != expected:
        versions = ", ".join(engine_versions(config.engine.kind).values())
        raise DataError(
            f"{expected} was planned, and this process would write {job.path}: models, data or packages differ here "
            f"({versions}). Submit from the environment that the jobs run in, or name its python and container in "
            "cluster.toml"
        )
    for note in replaced_images(job) if worker == 0 else []:
        say(f"note: {note}", quiet)
    pending = shards_to_retry(job) if retry_failed else pending_of(job)
    mine = shards_of_worker(pending, worker, num_workers, dealt)
    if not mine:
        elsewhere = f" ({len(pending)} shards are other workers')" if pending else ""
        _say_done(job, ("no failed rows" if retry_failed else "nothing to do") + elsewhere, quiet)
        return job.path
    if not job.path.exists():
        for line in changes(job):
            say(line, quiet)
    if not retry_failed:
        for note in require_images(job):
            say(f"note: {note}", quiet)
    if num_workers > 1 or "SLURM_JOB_ID" in os.environ:
        separate_from_other_workers(worker, graph_fingerprint(job.identity), os.environ)
    todo = _failed_todo(job, mine) if retry_failed else _todo(job, mine, quiet)
    known, answered = todo.known, todo.answered
    if not todo.asking:
        create(job, found_with(known, answered))
        copy_shards(job, known, todo.whole, quiet)
        if todo.to_mask:
            require_usable_gpus(", ".join(visible_gpus()))
            with closing(_made_proposer(job, quiet)) as proposer:
                _load(proposer, job, quiet)
                tally = mask_shards(job, proposer, answered, todo.to_mask, quiet)
            _say_done(job, _told(tally, started), quiet)
        return job.path
    require_room_for(job, todo.asking, known)
    if engine_factory is None:
        gpus = visible_gpus()
        require_usable_gpus(", ".join(gpus))
        require_gpus(config.engine, 1, gpus)
        require_memory(config, 1, bool(gpus), job.weights_gb)
    with (
        closing(_made_proposer(job, quiet)) as proposer,
        closing(_made_engine(job, engine_factory or ENGINES[config.engine.kind], quiet)) as engine,
    ):
        _load(proposer, job, quiet)
        canary = run_canary(engine, job.family, job.rules, config.canary, config.clip_tolerance)
        if canary.passed is not None:
            say(canary.line() + ("" if canary.passed else " - going on, as canary.mode=warn asks"), quiet)
        logprobs = {"mode": "raw", "temperature": 0.0, "top": config.model.top_logprobs}
        create(job, {"canary": canary.to_dict(), "logprobs": logprobs})
        copy_shards(job, known, todo.whole, quiet)
        tally = mask_shards(job, proposer, answered, todo.to_mask, quiet)
        tally += write_asked_shards(
            job, engine, proposer, known, todo.asking, canary, quiet, retrying=retry_failed
        )
    _say_done(job, _told(tally, started), quiet)
    return job.path


def _made_engine(job: Job, factory: EngineFactory, quiet: bool) -> Engine:
    with starting(f"engine.kind={job.config.engine.kind} did not start", quiet):
        return factory(job.model_folder, job.family, job.config.model, job.config.engine)


def _made_proposer(job: Job, quiet: bool) -> Proposer:
    with starting(f"proposer.kind={job.config.proposer.kind} did not load", quiet):
        return PROPOSERS[job.config.proposer.kind].make(job.config.proposer, job.proposer_folder)


def _load(proposer: Proposer, job: Job, quiet: bool) -> None:
    with starting(f"proposer.kind={job.config.proposer.kind} did not load", quiet):
        proposer.load()


@dataclass(frozen=True, kw_only=True)
class _Todo:
    """How the shards of a process are filled."""

    known: Reusable
    """Rows that are taken over."""
    answered: Reusable
    """Rows whose answers are taken over, and whose masks are made anew."""
    whole: list[int]
    """Shards of which every row is known."""
    to_mask: list[int]
    """Shards of which every answer is."""
    asking: list[int]
    """The others: a row at least is asked for."""


def _todo(job: Job, mine: Sequence[int], quiet: bool) -> _Todo:
    """What other stores have of some pending shards; says what is taken from them."""
    known = find_known_rows(job)
    for line in known.unusable:
        say(f"no rows are taken over from a store that cannot be read: {line}", quiet)
    if known.num:
        say(f"{job.path}: {_taken_over(known, job.plan)}", quiet)
    whole = _all_known(known, job.plan, mine)
    answered = find_known_answers(job) if len(whole) < len(mine) else nothing_reusable(len(job.plan.samples))
    to_mask = sorted({*_all_known(answered, job.plan, mine)} - {*whole})
    if to_mask:
        say(f"{job.path}: {_answered(answered, job.plan, to_mask)}", quiet)
    asking = sorted({*mine} - {*whole} - {*to_mask})
    return _Todo(known=known, answered=answered, whole=whole, to_mask=to_mask, asking=asking)


def _failed_todo(job: Job, mine: Sequence[int]) -> _Todo:
    """The same of finished shards with failed rows: these are asked for, and the others are known."""
    num = len(job.plan.samples)
    known = rows_beside(job.path, num, mine)
    return _Todo(known=known, answered=nothing_reusable(num), whole=[], to_mask=[], asking=[*mine])


def _all_known(known: Reusable, plan: Plan, shards: Sequence[int]) -> list[int]:
    """Shards of which every row is known."""
    return [shard for shard in shards if known.known(*plan.bounds(shard)).all()]


def _told(tally: Counter[AnswerStatus], started: float) -> str:
    """What became of the rows of a run, for a person."""
    return f"{tally.total()} pairs in {time.monotonic() - started:.0f} s ({shares_of(tally)})"


def _say_done(job: Job, what: str, quiet: bool) -> None:
    """The last line of a run: what it did, and what failed in the store, if anything did."""
    failed = told_failures(job.path) if not quiet and job.path.exists() else ""
    say(f"{job.path}: {what}" + (f"; failed: {failed}" if failed else ""), quiet)


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
