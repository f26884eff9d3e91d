"""What can be known to fail before any row is asked for: lost or replaced images, and prompts that are too long."""

from collections.abc import Sequence

from shared.errors import DataError
from shared.image_pack import PACK_NAME
from shared.types import Sample
from stage1_priors.config import MllmConfig
from stage1_priors.families import Family, SizeRules
from stage1_priors.job import Job, StoreJob
from stage1_priors.reuse import Reusable

TEXT_TOKENS = 128
"""Room for a prompt but for its image: the families' questions take up to 60 tokens, 200 letters about 50."""


def require_room(model: MllmConfig, family: Family, rules: SizeRules, samples: Sequence[Sample]) -> None:
    """Refuse samples that `model.max_model_len` has no room for: vLLM would fail on each of them.

    Args:
        model: Limits on prompt and answer.
        family: Gives the size at which the model sees an image, and the tokens that this takes.
        rules: The model's limits on the size.
        samples: Those that will be asked about.

    Raises:
        DataError: Names their number, the largest and the settings.
    """
    tokens_of_hw: dict[tuple[int, int], int] = {}
    too_long: list[tuple[int, Sample]] = []
    for sample in samples:
        size_hw = sample.height, sample.width
        if size_hw not in tokens_of_hw:
            tokens_of_hw[size_hw] = family.num_image_tokens(family.processed_size(*size_hw, rules), rules)
        needed = tokens_of_hw[size_hw] + TEXT_TOKENS + model.max_tokens
        if needed > model.max_model_len:
            too_long.append((needed, sample))
    if too_long:
        most, sample = max(too_long, key=lambda one: one[0])
        raise DataError(
            f"{len(too_long)} of {len(samples)} pairs need more tokens than model.max_model_len, "
            f"{model.max_model_len}: {sample.sample_id} ({sample.file_name}, {sample.height} x {sample.width}) up to "
            f"{most}, {TEXT_TOKENS} of them for the text and model.max_tokens={model.max_tokens} for the answer. Raise "
            "model.max_model_len, or let the model see less of large images: model.max_pixels"
        )


def replaced_images(job: StoreJob) -> list[str]:
    """Notes on images of the plan that are read from a pack, though their files are others by now; at most one."""
    if not isinstance(job, Job):
        return []
    found = job.dataset.replaced_images(dict.fromkeys(sample.file_name for sample in job.plan.samples))
    if not found:
        return []
    return [
        f"{len(found)} images are of another size than in {job.dataset.root / PACK_NAME}, which is read, the first is "
        f"{found[0]}; run `l2l data pack` first, if they have been replaced"
    ]


def require_images(job: StoreJob) -> list[str]:
    """Notes on rows whose image is known to be lost before one is opened; at most one.

    Raises:
        DataError: So many that a run of all pairs would stop at its end.
    """
    if not isinstance(job, Job):
        return []
    lost = [sample for sample in job.plan.samples if sample.file_name in job.lost_images]
    if not lost:
        return []
    num, first, ceiling = len(job.plan.samples), lost[0], job.config.error_ceiling
    told = (
        f"{len(lost)} of {num} pairs are of images that are missing or cannot be read; the first is "
        f"{first.sample_id}: {_why_lost(job, first.file_name)}"
    )
    if len(lost) > ceiling * num and not job.plan.left_out:
        raise DataError(f"{told}. error_ceiling is {ceiling}; set error_ceiling=1 to go on regardless")
    return [f"{told}. They get no prior"]


def _why_lost(job: Job, file_name: str) -> str:
    try:
        return f"{job.dataset.image_path(file_name)} is {job.lost_images[file_name]}"
    except DataError as error:
        return str(error)


def require_room_for(job: StoreJob, shards: Sequence[int], known: Reusable) -> None:
    """See that the model has room for every row of some shards that is not known; raises as `require_room`."""
    if isinstance(job, Job) and job.config.engine.kind == "vllm":
        rows = [row for shard in shards for row in range(*job.plan.bounds(shard)) if known.source_N[row] < 0]
        samples = [job.plan.samples[row] for row in rows]
        require_room(job.config.model, job.family, job.rules, samples)
