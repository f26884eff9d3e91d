"""What a run would do, told before anything is written.

Imports neither torch nor vLLM.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from shared.datasets import load_dataset
from shared.errors import DataError
from stage1_priors.config import ImportConfig, PriorsConfig
from stage1_priors.engine import engine_versions
from stage1_priors.job import (
    Job,
    StoreJob,
    changes,
    find_known_answers,
    find_known_rows,
    job_of,
    pending_of,
    plan_of,
    require_engine,
)
from stage1_priors.plan import Plan
from stage1_priors.preflight import replaced_images, require_images, require_room_for
from stage1_priors.reuse import Reusable, nothing_reusable


def describe_plan(config: PriorsConfig | ImportConfig, *, quiet: bool = True) -> dict[str, Any]:
    """What a run would do, JSON-able; nothing is written but the memory of image hashes.

    Args:
        config: The recipe.
        quiet: No progress over the images that are read for the first time.

    Returns:
        Data set, pairs per split, limit on them, images, shards in all and pending, engine (or the source of imported
        masks), and, if the model is on this machine, the store's path, what differs from the nearest store, and how
        many pairs each other store already holds. `problem` says what a run would stop at, else None, and `notes` what
        it would go on with.

    Raises:
        DataError: Missing or unusable data.
    """
    dataset = load_dataset(config.data)
    plan = plan_of(config, dataset)
    description: dict[str, Any] = {
        "data": f"{config.data.dataset} ({config.data.split_by}) in {config.data.root}",
        "splits": dict(Counter(sample.split for sample in plan.samples)),
        "pairs": len(plan.samples),
        "limit": _limit_of(plan),
        "images": len({sample.image_id for sample in plan.samples}),
        "shards": plan.num_shards,
        **_tools(config),
        "problem": None,
    }
    try:
        require_engine(config)
        job = job_of(config, quiet=quiet)
    except DataError as error:
        return description | {"problem": str(error)}
    exists, pending = job.path.exists(), pending_of(job)
    known = find_known_rows(job) if isinstance(job, Job) and pending else nothing_reusable(len(plan.samples))
    notes = replaced_images(job)
    try:
        notes += require_images(job) if pending else []
        require_room_for(job, pending, known)
    except DataError as error:
        description["problem"] = str(error)
    return description | {
        "notes": notes,
        "fingerprint": job.fingerprint,
        "store": str(job.path),
        "exists": exists,
        "pending_shards": len(pending),
        "changed": [] if exists else changes(job),
        **_known_elsewhere(job, pending, known),
    }


def _known_elsewhere(job: StoreJob, pending: Sequence[int], known: Reusable) -> dict[str, dict[str, int]]:
    """How many rows, and answers alone, each other store holds."""
    if not isinstance(job, Job) or not pending:
        return {"reused": {}, "answers": {}}
    num = len(job.plan.samples)
    reused, answers = known.counts(0, num), find_known_answers(job).counts(0, num)
    return {"reused": reused, "answers": {name: n for name, n in answers.items() if name not in reused}}


def _limit_of(plan: Plan) -> str | None:
    num = len(plan.samples)
    return f"the first {num} of {num + plan.left_out} pairs" if plan.left_out else None


def _tools(config: PriorsConfig | ImportConfig) -> dict[str, Any]:
    """What makes the rows, for a person."""
    if isinstance(config, ImportConfig):
        return {"source": config.source}
    return {
        "model": config.model.path,
        "engine": {"kind": config.engine.kind, **engine_versions(config.engine.kind)},
        "proposer": f"{config.proposer.kind} {config.proposer.path if config.proposer.is_sam else ''}".strip(),
        "canary": config.canary.mode,
    }
