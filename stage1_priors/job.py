"""What a run knows before it needs an engine: rows, model files, identity, store; and the making of the empty store.

Imports neither torch nor vLLM.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.config import config_to_dict
from shared.datasets import load_dataset
from shared.image_hashes import LOST, content_hashes, identify_images, memory_of
from shared.refer import ReferDataset
from shared.store.find import find_stores, store_path
from shared.store.layout import read_header
from shared.store.schema import (
    EXPRESSION_BYTES,
    IMAGE_HASH,
    IMAGE_HASH_BYTES,
    SAMPLE_ID_BYTES,
    SHARD_ROWS,
    candidate_fields,
    encode_text_rows,
    image_hash_fields,
    prior_fields,
    sample_fields,
)
from shared.store.writer import create_store, pending_shards
from stage1_priors.config import ImportConfig, PriorsConfig
from stage1_priors.engine import require_packages
from stage1_priors.families import Family, SizeRules, family_of, require_chat_template, size_rules_of
from stage1_priors.identity import (
    differences,
    fingerprint_of,
    identity_of,
    images_fingerprint,
    import_identity_of,
    locate_model,
    locate_proposer,
)
from stage1_priors.mask_source import source_files
from stage1_priors.memory_left import weights_gb
from stage1_priors.plan import Plan, make_plan
from stage1_priors.reuse import Reusable, find_reusable, nothing_reusable


@dataclass(frozen=True, kw_only=True)
class StoreJob:
    """What is known of a store before its first row."""

    config: PriorsConfig | ImportConfig
    """The configuration."""
    dataset: ReferDataset
    """The data set, images unread."""
    plan: Plan
    """Rows and shards."""
    identity: dict[str, Any]
    """What the rows depend on."""
    fingerprint: str
    """Its hash."""
    path: Path
    """The store."""


@dataclass(frozen=True, kw_only=True)
class Job(StoreJob):
    """Everything a run knows before it needs an engine."""

    config: PriorsConfig
    """The configuration."""
    family: Family
    """How the model is asked."""
    rules: SizeRules
    """Sizes of images the model sees."""
    model_folder: Path
    """Where the model lies."""
    proposer_folder: Path | None
    """Where the proposer's model lies; None if it has none."""
    image_hashes: dict[str, bytes]
    """Content hash of each image by file name; empty where `image_hash` does not read them."""
    lost_images: dict[str, str]
    """Images of which there is no byte, by file name: missing or unreadable."""

    @property
    def weights_gb(self) -> float:
        """Memory for the weights of the models, GiB; SAM's are float32 whatever its encoder works with."""
        own = weights_gb(self.model_folder, self.config.model.dtype)
        return own + (0 if self.proposer_folder is None else weights_gb(self.proposer_folder, "float32"))


def make_job(config: PriorsConfig, *, quiet: bool = True) -> Job:
    """Load the annotations, find the model, fingerprint everything; no engine, no model call.

    Args:
        config: The recipe.
        quiet: No progress over the images that are read for the first time.

    Raises:
        DataError: Missing or unusable data, or no model on this machine.
    """
    dataset = load_dataset(config.data).without_masks(())  # which are not for a prior, and take memory
    plan = plan_of(config, dataset)
    model = locate_model(config.model)
    family = family_of(model.folder).asking(config.model.question, config.model.system)
    rules = size_rules_of(
        family, model.folder, min_pixels=config.model.min_pixels, max_pixels=config.model.max_pixels
    )
    require_chat_template(model.folder)
    proposer = locate_proposer(config.proposer) if config.proposer.is_sam else None
    names = {sample.file_name for sample in plan.samples}
    memory = memory_of(config.cache_root, config.data.dataset)
    images = identify_images(
        ((name, dataset.image_identity(name)) for name in names), config.image_hash, memory, quiet=quiet
    )
    identity = identity_of(
        config,
        family,
        rules,
        model,
        dataset.fingerprint(),
        images_fingerprint(images),
        proposer,
        limit=len(plan.samples) if plan.left_out else None,
    )
    fingerprint = fingerprint_of(identity)
    return Job(
        config=config,
        dataset=dataset,
        plan=plan,
        family=family,
        rules=rules,
        model_folder=model.folder,
        proposer_folder=None if proposer is None else proposer.folder,
        image_hashes=content_hashes(images) if config.image_hash == "content" else {},
        lost_images={name: value for name, value in images.items() if value in LOST},
        identity=identity,
        fingerprint=fingerprint,
        path=_path(config, fingerprint),
    )


def make_import_job(config: ImportConfig, *, quiet: bool = True) -> StoreJob:
    """Load the annotations and fingerprint the source of the masks; no mask is decoded.

    Args:
        config: The recipe.
        quiet: No progress over the files that are read for the first time.

    Raises:
        DataError: Missing or unusable data, or no masks at the source.
    """
    dataset = load_dataset(config.data)
    plan = plan_of(config, dataset)
    memory = memory_of(config.cache_root, f"{config.data.dataset}-masks")
    files = identify_images(source_files(Path(config.source)), config.image_hash, memory, quiet=quiet)
    masks = images_fingerprint(files)
    identity = import_identity_of(config, dataset.fingerprint(), masks)
    fingerprint = fingerprint_of(identity)
    return StoreJob(
        config=config,
        dataset=dataset,
        plan=plan,
        identity=identity,
        fingerprint=fingerprint,
        path=_path(config, fingerprint),
    )


def job_of(config: PriorsConfig | ImportConfig, *, quiet: bool = True) -> StoreJob:
    """The job of either kind of recipe; arguments and errors as of `make_job` and `make_import_job`."""
    if isinstance(config, ImportConfig):
        return make_import_job(config, quiet=quiet)
    return make_job(config, quiet=quiet)


def require_engine(config: PriorsConfig | ImportConfig) -> None:
    """See that what a recipe needs to ask a model is installed; raises DataError naming what is not."""
    if isinstance(config, PriorsConfig):
        require_packages(config.engine.kind)


def find_known_rows(job: Job) -> Reusable:
    """Rows of the plan that other stores hold already."""
    return find_reusable(job.config, job.identity, job.path, job.plan.samples, job.image_hashes)


def find_known_answers(job: Job) -> Reusable:
    """Rows of the plan whose answers other stores hold, whatever made masks of them; none if answers are not enough."""
    if job.config.proposer.needs_edges:
        return nothing_reusable(len(job.plan.samples))
    identity = {name: value for name, value in job.identity.items() if name != "proposer"}
    return find_reusable(job.config, identity, job.path, job.plan.samples, job.image_hashes)


def create(job: StoreJob, attrs: dict[str, Any]) -> None:
    """Make the empty store, or see that it is there already.

    Args:
        job: Gives rows and identity.
        attrs: Attributes beside those that every store of priors has.
    """
    config, samples = job.config, job.plan.samples
    if isinstance(config, ImportConfig):
        grid, fields = config.grid, prior_fields(config.grid)
    else:
        grid = config.proposer.grid
        candidates = config.proposer.candidates
        fields = prior_fields(grid) + sample_fields(config.model.num_samples)
        fields += candidate_fields(candidates.num, candidates.side)
    code = {split: index for index, split in enumerate(job.plan.splits)}
    static = {
        "sample_id": encode_text_rows([s.sample_id for s in samples], SAMPLE_ID_BYTES, strict=True),
        "expression": encode_text_rows([s.expression for s in samples], EXPRESSION_BYTES),
        "image_id": np.array([s.image_id for s in samples], np.int64),
        "split": np.array([code[s.split] for s in samples], np.uint8),
        "image_hw": np.array([(s.height, s.width) for s in samples], np.int32),
    }
    begun_without = job.path.exists() and IMAGE_HASH not in read_header(job.path).fields
    if isinstance(job, Job) and job.image_hashes and not begun_without:
        fields += image_hash_fields()
        none = bytes(IMAGE_HASH_BYTES)
        hashes = b"".join(job.image_hashes.get(s.file_name, none) for s in samples)
        static[IMAGE_HASH] = np.frombuffer(hashes, np.uint8).reshape(-1, IMAGE_HASH_BYTES)
    own = {
        "fingerprint": job.fingerprint,
        "fingerprint_fields": job.identity,
        "data": {
            "root": config.data.root,
            "dataset": config.data.dataset,
            "split_by": config.data.split_by,
            "fingerprint": job.dataset.fingerprint(),
        },
        "splits": list(job.plan.splits),
        **({"limit": len(samples)} if job.plan.left_out else {}),
        "grid": grid,
        "config": config_to_dict(config),
    }
    create_store(job.path, num_rows=len(samples), fields=fields, attrs=own | attrs, static=static)


def _path(config: PriorsConfig | ImportConfig, fingerprint: str) -> Path:
    return store_path(config.cache_root, f"{config.data.dataset}-{config.data.split_by}", fingerprint)


def plan_of(config: PriorsConfig | ImportConfig, dataset: ReferDataset) -> Plan:
    """Rows and shards of a recipe's store; raises DataError where a split is none or has no rows."""
    where = f"{config.data.dataset} ({config.data.split_by}) in {config.data.root}"
    limit = config.limit if isinstance(config, PriorsConfig) else None
    return make_plan(dataset.samples(), config.splits, SHARD_ROWS, where, limit)


def pending_of(job: StoreJob) -> list[int]:
    """Shards that still have to be written, in order; partial files of writers that are gone are removed."""
    return pending_shards(job.path) if job.path.exists() else list(range(job.plan.num_shards))


def changes(job: StoreJob) -> list[str]:
    """How this run's identity differs from the nearest existing store of the data set; empty if there is none."""
    nearest, best = "", list[str]()
    for path in find_stores(
        job.config.cache_root, dataset=job.config.data.dataset, split_by=job.config.data.split_by
    ):
        lines = differences(read_header(path).attrs.get("fingerprint_fields", {}), job.identity)
        if lines and (not best or len(lines) < len(best)):
            nearest, best = path.name, lines
    return [f"{line} (from {nearest})" for line in best]
