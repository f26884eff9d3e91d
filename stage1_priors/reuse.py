"""Rows that finished stores hold already, for a plan that is not theirs: a pair was added, a split, a data set of the
same images.

A row is the answer of one frozen model about the bytes of one image and one expression. Where a store under the same
cache folder was made with the same model, prompt, sampling, engine, parser and proposer (everything of its identity but
data and splits), a row of the same bytes and expression is taken over and nobody is asked. Neither its sample id nor
its place matter, unless boxes were sampled: their seed is the sample id's, which must be the same then.

Not taken over: rows of unfinished shards, rows whose image or request failed, expressions that a store may have cut,
and anything of a store whose canary did not pass, where the run's own must (`canary.mode=refuse`).

Legend: N rows of the plan.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.store.find import find_stores
from shared.store.reader import PriorStore
from shared.store.schema import EXPRESSION_BYTES, IMAGE_HASH, SHARD_ROWS, decode_text_rows, first_rows
from shared.types import STATUS_CODES, AnswerStatus, Sample
from stage1_priors.config import PriorsConfig

UNCUT_BYTES = EXPRESSION_BYTES - 3
"""A stored expression shorter than this was not cut: a cut at a whole character leaves at least so many bytes."""
FAILED = (AnswerStatus.IMAGE_ERROR, AnswerStatus.ENGINE_ERROR)
"""Statuses that another try may change."""


@dataclass(frozen=True, kw_only=True)
class Reusable:
    """Which rows of a plan need not be asked for, and where they lie."""

    stores: tuple[PriorStore, ...]
    """Stores that hold at least one of them."""
    store_N: np.ndarray
    """int16 [N], index into `stores`; -1: the model must be asked."""
    row_N: np.ndarray
    """int64 [N], row of that store; undefined where there is none."""

    @property
    def num(self) -> int:
        """Rows that are taken over."""
        return int((self.store_N >= 0).sum())

    def known(self, start: int, stop: int) -> np.ndarray:
        """Whether rows `start` to `stop` of the plan are taken over: bool [stop - start]."""
        return self.store_N[start:stop] >= 0

    def counts(self, start: int, stop: int) -> dict[str, int]:
        """Rows taken over between two rows of the plan, by name of the store they come from."""
        found = Counter(self.store_N[start:stop].tolist())
        return {store.path.name: found[index] for index, store in enumerate(self.stores) if found[index]}

    def columns(self, start: int, stop: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of the rows between `start` and `stop` that are taken over, in the plan's order.

        Raises:
            DataError: A store is damaged; it names the shard and the remedy.
        """
        taken = np.flatnonzero(self.known(start, stop)) + start
        found: dict[str, np.ndarray] = {}
        for index, store in enumerate(self.stores):
            here = np.flatnonzero(self.store_N[taken] == index)
            if not len(here):
                continue
            rows = self.row_N[taken[here]]
            for name in names:
                with _named_remedy():
                    part = store.batch(name, _holders(store, rows) if name == "candidates" else rows)
                if name not in found:
                    found[name] = np.empty((len(taken), *part.shape[1:]), part.dtype)
                found[name][here] = part
        return found


def find_reusable(
    config: PriorsConfig,
    identity: Mapping[str, Any],
    fingerprint: str,
    samples: Sequence[Sample],
    image_hashes: Mapping[str, bytes],
) -> Reusable:
    """Look through the finished shards of the stores under `config.cache_root`.

    Where several stores hold a row, the first by name gives it.

    Args:
        config: The run's configuration.
        identity: What its rows depend on.
        fingerprint: Hash of `identity`; this store is passed over.
        samples: Rows of the plan.
        image_hashes: Content hash by file name, `shared.store.schema.IMAGE_HASH_BYTES` long; images that are not there
            have none.

    Raises:
        DataError: A store is damaged; it names the file and the remedy.
    """
    wanted: dict[tuple[bytes, str, str], list[int]] = {}
    for row, sample in enumerate(samples if config.reuse else ()):
        if (digest := image_hashes.get(sample.file_name)) is not None and _is_kept_whole(sample.expression):
            seed_of = sample.sample_id if config.model.num_samples else ""
            wanted.setdefault((digest, sample.expression, seed_of), []).append(row)
    store_N, row_N = np.full(len(samples), -1, np.int16), np.zeros(len(samples), np.int64)
    used: list[PriorStore] = []
    for path in find_stores(config.cache_root) if wanted else ():
        store = PriorStore(path)
        if store.fingerprint == fingerprint or not _fits(store, identity, config.canary.mode == "refuse"):
            continue
        before = len(wanted)
        with _named_remedy():
            theirs = _rows_by_key(store, bool(config.model.num_samples))
        for key, row in theirs.items():
            for mine in wanted.pop(key, ()):
                store_N[mine], row_N[mine] = len(used), row
        if len(wanted) < before:
            used.append(store)
    return Reusable(stores=tuple(used), store_N=store_N, row_N=row_N)


def merge_rows(
    known_B: np.ndarray, taken: dict[str, np.ndarray], asked: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Columns of B rows, of which some were taken over and the others asked for.

    Args:
        known_B: bool [B], the rows that were taken over.
        taken: Their columns, in order; anything if there are none.
        asked: Columns of the others, in order.
    """
    if not known_B.any():
        return asked
    merged = {}
    for name, part in asked.items():
        merged[name] = np.empty((len(known_B), *part.shape[1:]), part.dtype)
        merged[name][known_B], merged[name][~known_B] = taken[name], part
    return merged


@contextmanager
def _named_remedy() -> Iterator[None]:
    """Say of an error in another store how to do without it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error}; or ask for its rows again: --set reuse=false") from None


def _fits(store: PriorStore, identity: Mapping[str, Any], canary_must_pass: bool) -> bool:
    """Whether a row of `store` is what the run would write for the same image and expression."""
    theirs = store.attrs.get("fingerprint_fields", {})
    same = all(theirs.get(key) == identity[key] for key in identity if key not in ("data", "splits"))
    passed = store.attrs.get("canary", {}).get("passed") is True
    return same and IMAGE_HASH in store.fields and (passed or not canary_must_pass)


def _rows_by_key(store: PriorStore, with_ids: bool) -> dict[tuple[bytes, str, str], int]:
    """Rows that may be taken over, by image hash, expression and, if asked for, sample id."""
    done = store.done_shards
    rows = [np.arange(k * SHARD_ROWS, min((k + 1) * SHARD_ROWS, store.num_rows)) for k in done]
    if not rows:
        return {}
    row_R = np.concatenate(rows)
    failed_R = np.isin(store.batch("status", row_R), [STATUS_CODES[status] for status in FAILED])
    row_R = row_R[~failed_R]
    digest_R = [row.tobytes() for row in store.batch(IMAGE_HASH, row_R)]
    text_R = decode_text_rows(store.batch("expression", row_R))
    ids = store.sample_ids
    keys = zip(digest_R, text_R, row_R.tolist(), strict=True)
    return {(digest, text, ids[row] if with_ids else ""): row for digest, text, row in keys if any(digest)}


def _is_kept_whole(expression: str) -> bool:
    """Whether a store holds an expression as it is, and holds no other one in the same way."""
    return (
        not any(char in "\0\ufffd" or "\ud800" <= char <= "\udfff" for char in expression)
        and len(expression.encode()) < UNCUT_BYTES
    )


def _holders(store: PriorStore, rows: np.ndarray) -> np.ndarray:
    """Rows that hold the candidates of `rows`."""
    return first_rows(store.column("image_id"))[rows]
