"""Rows whose image or request failed: what is said of them, and which others are kept when they are asked again.

A failed row stays as it is, whatever is run, until it is asked for by `priors run --retry-failed`. Then its shard is
written once more with all its other rows as they are. That is for what went wrong beside the data: an image that has
been mended has other bytes, and the data set with it another store, which a plain `priors run` fills.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.store.layout import StoreHeader, read_header
from shared.store.marks import read_mark
from shared.store.reader import PriorStore
from shared.store.schema import first_rows
from shared.types import STATUS_CODES, AnswerStatus
from stage1_priors.job import Job, StoreJob, changes
from stage1_priors.reuse import FAILED, Reusable, nothing_reusable

FAILED_CODES = [STATUS_CODES[status] for status in FAILED]
REASON_CHARACTERS = 200
"""Most of a reason that is shown."""


NO_MODEL = "--retry-failed asks a model again; masks from elsewhere are read without one"
MEND_THE_CAUSE = "Mend the cause, then the same command with --retry-failed asks for these rows again"
MEND_THE_IMAGES = (
    "Mend the images or put them back, then run the same command without --retry-failed: other images are another "
    "store, which takes over all other rows. With --retry-failed it asks again about image files that are as they were"
)
"""For stores that know images by their bytes; where sizes count, a mended image is most often still the same."""


def shards_to_retry(job: StoreJob) -> list[int]:
    """Finished shards of a run's store with rows that `--retry-failed` asks for.

    Raises:
        DataError: Masks from elsewhere, or a store that is not there, of which nothing can have failed; says what
            differs from the nearest one.
    """
    if not isinstance(job, Job):
        raise DataError(NO_MODEL)
    if not job.path.exists():
        differs = f". What has changed: {'; '.join(lines)}" if (lines := changes(job)) else ""
        takes_over = job.config.reuse and job.image_hashes
        others = "all other rows are taken over" if takes_over else "all rows are asked for"
        raise DataError(
            f"{job.path}: there is no such store, so that no row of it has failed{differs}. Run without "
            f"--retry-failed: {others}"
        )
    return [*failed_shards(job.path)]


def failed_shards(path: Path) -> dict[int, Counter[str]]:
    """Finished shards with failed rows, and how many failed in which way; none where there is no store."""
    if not path.exists():
        return {}
    header, found = read_header(path), dict[int, Counter[str]]()
    for shard in range(header.num_shards):
        try:
            status = read_mark(header, shard)["status"]
        except (DataError, FileNotFoundError):
            continue
        if failed := Counter({str(name): status[name] for name in FAILED if status.get(name)}):
            found[shard] = failed
    return found


def told_failures(path: Path) -> str:
    """How many rows of a store's finished shards failed, why most of them did, and the remedy; empty if none did."""
    shards = failed_shards(path)
    if not shards:
        return ""
    header, store = read_header(path), PriorStore(path)
    like, first = Counter[str](), dict[str, str]()
    for shard in shards:
        row_F = _failed_rows(store, header, shard)
        for reason in store.texts("raw_text", row_F):
            kind = re.sub(r"\S*[\d/]\S*", "#", reason)  # numbers and files differ from row to row
            like[kind] += 1
            first.setdefault(kind, " ".join(reason.split()))
    ((commonest, num),) = like.most_common(1)
    tally = sum(shards.values(), Counter[str]())
    counts = ", ".join(f"{count} {name}" for name, count in tally.most_common())
    by_bytes = header.attrs.get("fingerprint_fields", {}).get("data", {}).get("image_hash") == "content"
    of_images = tally[AnswerStatus.IMAGE_ERROR] if by_bytes else 0
    advice = [MEND_THE_CAUSE] * (of_images < tally.total()) + [MEND_THE_IMAGES] * (of_images > 0)
    return f"{counts}; {num} so: {first[commonest][:REASON_CHARACTERS]!r}. {'. '.join(advice)}"


def rows_beside(path: Path, num_rows: int, shards: Sequence[int]) -> Reusable:
    """The rows of finished shards that did not fail, as rows that need not be asked for.

    Args:
        path: The store.
        num_rows: All its rows.
        shards: Finished ones; rows of others are in neither way known.

    Raises:
        DataError: A shard is damaged; names it and the remedy.
    """
    header, store, found = read_header(path), PriorStore(path), nothing_reusable(num_rows)
    holder_R = first_rows(store.column("image_id")) if "candidates" in header.fields else np.arange(num_rows)
    for shard in shards:
        row_F, row_B = _failed_rows(store, header, shard), np.arange(*header.shard_bounds(shard))
        kept = np.setdiff1d(row_B, row_F)
        found.source_N[kept], found.row_N[kept], found.holder_N[kept] = 0, kept, holder_R[kept]
        found.status_N[kept] = store.batch("status", kept)
        found.passed_N[kept] = read_mark(header, shard)["info"].get("canary_passed") is True
        found.failed_N[row_F] = True
    return replace(found, sources=(header,))


def info_of_retried(path: Path, shard: int) -> dict[str, Any]:
    """What a shard's mark says of rows that were taken over, which stays true when its failed ones are asked again."""
    info = read_mark(read_header(path), shard)["info"]
    return {name: info[name] for name in ("reused", "answers") if name in info}


def keep_candidates(path: Path, bounds: tuple[int, int], columns: dict[str, np.ndarray]) -> None:
    """Put back the candidates that a finished shard has: a failed row may hold those of other rows of its image.

    Args:
        path: The store.
        bounds: First row of the shard, and the row after its last.
        columns: The shard's new columns, changed in place.
    """
    if "candidates" in columns:
        stored = PriorStore(path).batch("candidates", np.arange(*bounds))
        there_B = stored.any(axis=(1, 2, 3))
        columns["candidates"][there_B] = stored[there_B]


def _failed_rows(store: PriorStore, header: StoreHeader, shard: int) -> np.ndarray:
    row_B = np.arange(*header.shard_bounds(shard))
    return row_B[np.isin(store.batch("status", row_B), FAILED_CODES)]
