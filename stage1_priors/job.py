"""What a run knows before it needs an engine: rows, model files, identity, store. Imports neither torch nor vLLM."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.datasets import load_dataset
from shared.errors import DataError
from shared.refer import ReferDataset
from shared.store.find import find_stores, store_path
from shared.store.layout import read_header
from shared.store.schema import SHARD_ROWS
from shared.store.writer import pending_shards
from stage1_priors.config import PriorsConfig
from stage1_priors.engine import engine_versions
from stage1_priors.families import Family, SizeRules, family_of, size_rules_of
from stage1_priors.identity import differences, fingerprint_of, identity_of, images_fingerprint, locate_model
from stage1_priors.plan import Plan, make_plan


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a run knows before it needs an engine."""

    config: PriorsConfig
    """The configuration."""
    dataset: ReferDataset
    """The data set, images unread."""
    plan: Plan
    """Rows and shards."""
    family: Family
    """How the model is asked."""
    rules: SizeRules
    """Sizes of images the model sees."""
    model_folder: Path
    """Where the model lies."""
    identity: dict[str, Any]
    """What the rows depend on."""
    fingerprint: str
    """Its hash."""
    path: Path
    """The store."""


def make_job(config: PriorsConfig) -> Job:
    """Load the annotations, find the model, fingerprint everything; no engine, no model call.

    Raises:
        DataError: Missing or unusable data, or no model on this machine.
    """
    dataset = load_dataset(config.data)
    plan = _plan(config, dataset)
    model = locate_model(config.model)
    family = family_of(model.folder)
    rules = size_rules_of(
        family, model.folder, min_pixels=config.model.min_pixels, max_pixels=config.model.max_pixels
    )
    names = {sample.file_name for sample in plan.samples}
    memory = Path(config.cache_root) / "image-hashes" / f"{config.data.dataset}.json"
    images = images_fingerprint(
        ((name, dataset.image_identity(name)) for name in names), config.image_hash, memory
    )
    identity = identity_of(config, family, model, dataset.fingerprint(), images)
    fingerprint = fingerprint_of(identity)
    return Job(
        config=config,
        dataset=dataset,
        plan=plan,
        family=family,
        rules=rules,
        model_folder=model.folder,
        identity=identity,
        fingerprint=fingerprint,
        path=store_path(config.cache_root, f"{config.data.dataset}-{config.data.split_by}", fingerprint),
    )


def _plan(config: PriorsConfig, dataset: ReferDataset) -> Plan:
    where = f"{config.data.dataset} ({config.data.split_by}) in {config.data.root}"
    return make_plan(dataset.samples(), config.splits, SHARD_ROWS, where)


def pending_of(job: Job) -> list[int]:
    """Shards that still have to be written, in order; partial files of writers that are gone are removed."""
    return pending_shards(job.path) if job.path.exists() else list(range(job.plan.num_shards))


def describe_plan(config: PriorsConfig) -> dict[str, Any]:
    """What a run would do, JSON-able; nothing is written but the memory of image hashes.

    Returns:
        Data set, pairs per split, images, shards in all and pending, engine, and, if the model is on this machine, the
        store's path and what differs from the nearest store. `problem` says what a run would stop at, else None.

    Raises:
        DataError: Missing or unusable data.
    """
    dataset = load_dataset(config.data)
    plan = _plan(config, dataset)
    description: dict[str, Any] = {
        "data": f"{config.data.dataset} ({config.data.split_by}) in {config.data.root}",
        "splits": dict(Counter(sample.split for sample in plan.samples)),
        "pairs": len(plan.samples),
        "images": len({sample.image_id for sample in plan.samples}),
        "shards": plan.num_shards,
        "model": config.model.path,
        "engine": {"kind": config.engine.kind, **engine_versions(config.engine.kind)},
        "canary": config.canary.mode,
        "problem": None,
    }
    try:
        job = make_job(config)
    except DataError as error:
        return description | {"problem": str(error)}
    exists = job.path.exists()
    return description | {
        "fingerprint": job.fingerprint,
        "store": str(job.path),
        "exists": exists,
        "pending_shards": len(pending_of(job)),
        "changed": [] if exists else changes(job),
    }


def changes(job: Job) -> list[str]:
    """How this run's identity differs from the nearest existing store of the data set; empty if there is none."""
    best: list[str] = []
    for path in find_stores(
        job.config.cache_root, dataset=job.config.data.dataset, split_by=job.config.data.split_by
    ):
        lines = differences(read_header(path).attrs.get("fingerprint_fields", {}), job.identity)
        if lines and (not best or len(lines) < len(best) - 1):
            best = [f"nearest store {path.name} differs in:", *lines]
    return best
