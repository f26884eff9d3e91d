"""Stage 1 without a model: a store of soft masks that were made elsewhere. Imports no engine and no torch.

The rows, the shards and the way they are written are those of any other store; the model's columns are empty and the
status says where a row's mask came from, or that there is none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError, short
from shared.runlog import ProgressBar, say
from shared.store.schema import STATIC_PRIOR_FIELDS, prior_fields
from shared.store.writer import write_shard
from shared.types import STATUS_CODES, AnswerStatus, Sample
from stage1_priors.config import ImportConfig
from stage1_priors.job import StoreJob, changes, create, make_import_job, pending_of
from stage1_priors.mask_source import MaskSource, has_proportions, open_source, to_grid
from stage1_priors.plan import shards_of_worker
from stage1_priors.proposals import NO_PRIOR

READ_ROWS = 32
"""Masks held at their own resolution at a time."""

LONG_EXPRESSION = 60
"""A text of so many characters, with which an expression begins, may be all that was kept of it."""


def import_masks(
    config: ImportConfig,
    *,
    worker: int = 0,
    num_workers: int = 1,
    dealt: Sequence[int] | None = None,
    quiet: bool = False,
) -> Path:
    """Write what is missing of a store of imported masks, and return its path.

    Args:
        config: The recipe.
        worker: Number of this process among `num_workers` independent ones.
        num_workers: Processes that share the store.
        dealt: Shards that they divide evenly, the same list for all of them; None: as `shards_of_worker` says.
        quiet: No progress on standard error.

    Raises:
        DataError: Unusable data or masks, a mask that names no sentence, or more rows without one than the ceiling.
    """
    job = make_import_job(config, quiet=quiet)
    pending = pending_of(job)
    mine = shards_of_worker(pending, worker, num_workers, dealt)
    lines = [] if job.path.exists() else changes(job)
    if not mine:
        lines = [f"{job.path}: nothing to do ({len(pending)} shards pending elsewhere)"]
    else:
        source = open_source(Path(config.source))
        num_missing = check_coverage(config, job, source)
        lines.append(f"{config.source}: no mask for {num_missing} of {len(job.plan.samples)} rows")
        create(job, {})
        if num_empty := _write_shards(job, config, source, mine, quiet):
            lines.append(f"{config.source}: {num_empty} masks more hold the fill value alone, which is none")
    say("\n".join(lines), quiet)
    return job.path


def check_coverage(config: ImportConfig, job: StoreJob, source: MaskSource) -> int:
    """Rows of the plan without a mask.

    Raises:
        DataError: More of them than the ceiling allows, a mask for a sentence the data set does not have, or for
            another one than has its id by now.
    """
    known = {sample.sample_id: sample.expression for sample in job.dataset.samples()}
    if strangers := sorted(source.sample_ids - known.keys()):
        raise DataError(
            f"{config.source}: {len(strangers)} of {len(source.sample_ids)} masks name no sentence of "
            f"{config.data.dataset} ({config.data.split_by}), first {strangers[0]!r}; expected ids such as "
            f"{job.plan.samples[0].sample_id!r}"
        )
    others = [
        (sample_id, said)
        for sample_id, said in source.expressions.items()
        if not _is_or_begins(said, known[sample_id])
    ]
    if others:
        sample_id, said = others[0]
        raise DataError(
            f"{config.source}: {len(others)} of {len(source.sample_ids)} masks were made for another expression, first "
            f"{source.place(sample_id)}: {sample_id!r} was {short(said)} and is {short(known[sample_id])}; ids of a "
            "JSONL file are numbers of lines, which move: make the masks again, or name them by the ids of now"
        )
    present = source.sample_ids
    missing = [sample.sample_id for sample in job.plan.samples if sample.sample_id not in present]
    num = len(job.plan.samples)
    if len(missing) > config.missing_ceiling * num:
        unwritten = (
            f" ({source.num_unwritten} masks were never written, or hold zeros alone)"
            if source.num_unwritten
            else ""
        )
        raise DataError(
            f"{config.source}: no mask for {len(missing)} of {num} rows{unwritten}, first {missing[0]!r}; "
            f"missing_ceiling is {config.missing_ceiling}"
        )
    return len(missing)


def _is_or_begins(said: str, expression: str) -> bool:
    """Whether a text is an expression, or what a field of fixed width holds of a long one."""
    said, expression = said.strip(), expression.strip()
    return said == expression or (len(said) >= LONG_EXPRESSION and expression.startswith(said))


def _write_shards(
    job: StoreJob, config: ImportConfig, source: MaskSource, shards: Sequence[int], quiet: bool
) -> int:
    """Write some shards; returns how many masks turned out to be none."""
    named, num_empty = source.sample_ids, 0
    total = sum(len(job.plan.shard(shard)) for shard in shards)
    with ProgressBar(total, "import", "mask", quiet=quiet) as bar:
        for shard in shards:
            samples = job.plan.shard(shard)
            columns = import_columns(samples, source, config.grid)
            write_shard(job.path, shard, columns, {"fingerprint": job.fingerprint})
            imported = int((columns["status"] == STATUS_CODES[AnswerStatus.IMPORTED]).sum())
            num_empty += sum(sample.sample_id in named for sample in samples) - imported
            bar.update(len(samples))
    return num_empty


def import_columns(samples: Sequence[Sample], source: MaskSource, grid: int) -> dict[str, np.ndarray]:
    """The store's columns for some rows; rows the source lacks get `NO_PRIOR` and the status `not_imported`.

    Raises:
        DataError: A mask that cannot be read, is no soft mask, or has not the proportions of its row's image.
    """
    num = len(samples)
    columns: dict[str, np.ndarray] = {}
    for spec in prior_fields(grid):
        if spec.name not in STATIC_PRIOR_FIELDS:
            empty: Any = np.nan if spec.dtype.startswith("float") else 0
            columns[spec.name] = np.full((num, *spec.row_shape), empty, spec.dtype)
    columns["proposal"][:] = NO_PRIOR
    columns["status"][:] = STATUS_CODES[AnswerStatus.NOT_IMPORTED]
    present = source.sample_ids
    rows = [row for row, sample in enumerate(samples) if sample.sample_id in present]
    for start in range(0, len(rows), READ_ROWS):
        block = rows[start : start + READ_ROWS]
        for row, prob_hw in zip(block, source.read([samples[row].sample_id for row in block]), strict=True):
            if prob_hw is not None:
                _require_proportions(samples[row], source, prob_hw)
                columns["proposal"][row] = to_grid(prob_hw, grid)
                columns["status"][row] = STATUS_CODES[AnswerStatus.IMPORTED]
    return columns


def _require_proportions(sample: Sample, source: MaskSource, prob_hw: np.ndarray) -> None:
    """Raise DataError for a mask that is not of its row's image, by its proportions."""
    height, width = prob_hw.shape
    if not has_proportions((height, width), (sample.height, sample.width)):
        raise DataError(
            f"{source.place(sample.sample_id)}: a mask of height {height} and width {width} for {sample.sample_id} "
            f"({short(sample.expression)} of {sample.file_name}, height {sample.height}, width {sample.width}); a mask "
            "is square or has its image's proportions. Is it of another image? Ids of a JSONL file are numbers of "
            "lines, which move"
        )
