"""Shards for which the frozen model is not asked, because other stores hold what it would say.

A shard is copied where other stores hold all of its rows (`reuse.find_reusable`). Where they hold its answers, and
another proposer made masks of them, the masks are made anew: what the model says does not depend on it. `box`, `sam2`
and `sam` need no more of an answer than its box, which stores keep bit for bit; `soft-box` needs what the model knew
about each edge, which they do not, and asks again.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from shared.runlog import ProgressBar, say
from shared.store.layout import read_header
from shared.store.schema import first_rows
from shared.store.writer import write_shard
from shared.types import AnswerStatus, Sample
from stage1_priors.chunks import PIXEL_BYTES, Bounds, Chunk, chunks_of
from stage1_priors.job import Job
from stage1_priors.memory import release_freed_memory
from stage1_priors.open_shards import open_shards
from stage1_priors.proposals import Edges
from stage1_priors.proposers import Prompts, Proposer
from stage1_priors.reuse import Reusable, nothing_reusable, statuses_of

MADE_BY_PROPOSER = ("proposal", "proposer_iou", "candidates")
"""Columns that do not come from the answer."""


def write_columns(
    job: Job, shard: int, columns: dict[str, np.ndarray], info: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Publish a shard, in place of a finished one if asked to; an image's candidates are stored once in it."""
    if "candidates" in columns:
        first_N = first_rows(np.array([one.image_id for one in job.plan.shard(shard)]))
        columns["candidates"][first_N != np.arange(len(first_N))] = 0
    write_shard(job.path, shard, columns, {"fingerprint": job.fingerprint} | info, overwrite=overwrite)


def found_with(*known: Reusable) -> dict[str, Any]:
    """Attributes of a store for which no model was asked: those of a store that it takes from.

    One whose canary did not pass, if there is one.
    """
    sources = (header for one in known for header in one.sources)
    attrs = min((one.attrs for one in sources), key=lambda own: own["canary"]["passed"] is True)
    return {name: attrs[name] for name in ("canary", "logprobs")}


def copy_shards(job: Job, known: Reusable, shards: Sequence[int], quiet: bool) -> None:
    """Write shards of which every row is known."""
    names = [spec.name for spec in read_header(job.path).run_fields]
    with ProgressBar(sum(map(job.plan.rows_of, shards)), "known", "pair", quiet=quiet or not shards) as bar:
        for shard in shards:
            bounds = job.plan.bounds(shard)
            info = {"reused": known.counts(*bounds), "canary_passed": known.canary_passed(*bounds)}
            write_columns(job, shard, known.columns(*bounds, names), info)
            bar.update(job.plan.rows_of(shard))


def mask_shards(
    job: Job, proposer: Proposer, answered: Reusable, shards: Sequence[int], quiet: bool
) -> Counter[AnswerStatus]:
    """Write shards of which every answer is known, with masks of this run's own proposer.

    Args:
        job: Gives rows, images and store.
        proposer: Loaded.
        answered: Where the answers lie.
        shards: What to write; `answered` holds all of their rows.
        quiet: No progress line.

    Returns:
        What became of the answers.

    Raises:
        DataError: An image that cannot be read any more, or a damaged store.
    """
    names = [spec.name for spec in read_header(job.path).run_fields if spec.name not in MADE_BY_PROPOSER]

    def bytes_of(sample: Sample, is_new: bool) -> int:
        height, width = proposer.kept_hw((sample.height, sample.width))
        return PIXEL_BYTES * height * width if is_new else 0

    tally: Counter[AnswerStatus] = Counter()
    parts: list[dict[str, np.ndarray]] = []
    nothing, left = nothing_reusable(len(job.plan.samples)), open_shards(job, shards)
    with ProgressBar(sum(map(job.plan.rows_of, shards)), "masks", "pair", quiet=quiet or not shards) as bar:
        for chunk in chunks_of(job.plan, nothing, left, Bounds.of(job.config), bytes_of):
            columns = answered.columns(chunk.start, chunk.stop, names)
            tally.update(statuses_of(columns["status"]))
            images, no_edges = kept_images(job, proposer, chunk), (None,) * len(chunk.asked)
            parts.append(columns | propose_chunk(proposer, chunk, images, columns["box_xyxy_norm"], no_edges))
            if chunk.is_last:
                whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                bounds = job.plan.bounds(chunk.shard)
                info = {"answers": answered.counts(*bounds), "canary_passed": answered.canary_passed(*bounds)}
                if not left.is_others(chunk.shard):
                    write_columns(job, chunk.shard, whole, info)
                parts.clear()
                release_freed_memory()
            bar.update(len(chunk.asked))
    say(left.line(), quiet or not left.others)
    return tally


def kept_images(job: Job, proposer: Proposer, chunk: Chunk) -> list[Image.Image | None]:
    """What the proposer has kept of each row's image; images that it does not look at are not read."""
    kept: dict[str, Image.Image | None] = {}
    for sample in chunk.asked:
        if sample.file_name not in kept:
            is_looked_at = any(proposer.kept_hw((sample.height, sample.width)))
            kept[sample.file_name] = proposer.kept(job.dataset.image(sample)) if is_looked_at else None
    return [kept[sample.file_name] for sample in chunk.asked]


def propose_chunk(
    proposer: Proposer,
    chunk: Chunk,
    images: Sequence[Image.Image | None],
    box_norm_B4: np.ndarray,
    edges_B: tuple[Edges | None, ...],
) -> dict[str, np.ndarray]:
    """The columns that the proposer gives the asked rows of a chunk; arguments as of `Prompts`."""
    proposals = proposer.propose(
        Prompts(
            box_norm_B4=box_norm_B4,
            edges_B=edges_B,
            names_B=tuple(sample.file_name for sample in chunk.asked),
            images_B=tuple(images),
            continues=not chunk.is_first,
        )
    )
    columns = {"proposal": proposals.map_BGG, "proposer_iou": proposals.iou_B}
    if proposals.candidates_BMGG is not None:
        columns["candidates"] = proposals.candidates_BMGG
    return columns
