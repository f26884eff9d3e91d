"""Rows that finished stores hold already, for a plan that is not theirs: a pair was added, a split, a data set of the
same images.

A row is the answer of one frozen model about the bytes of one image and one expression. Where a store under the same
cache folder was made with the same model, prompt, sampling, engine, parser and proposer (everything of its identity but
`WHICH_ROWS`), a row of the same bytes and expression is taken over and nobody is asked. Neither its sample id nor
its place matter, unless boxes were sampled: their seed is the sample id's, which must be the same then.

Not taken over: rows of unfinished shards, rows whose image or request failed, expressions that a store may have cut,
and anything of a store whose canary did not pass, where the run's own must (`canary.mode=refuse`).

Legend: N rows of the plan.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.store.find import find_stores, unusable_stores
from shared.store.layout import StoreHeader, read_header
from shared.store.marks import read_mark
from shared.store.reader import PriorStore
from shared.store.schema import EXPRESSION_BYTES, IMAGE_HASH, decode_text_rows, first_rows, may_be_cut
from shared.types import STATUS_BY_CODE, AnswerStatus, Sample
from stage1_priors.config import PriorsConfig
from stage1_priors.identity import WHICH_ROWS

FAILED = (AnswerStatus.IMAGE_ERROR, AnswerStatus.ENGINE_ERROR)
"""What became of rows of which nobody could be asked; another try may change it."""

_Key = tuple[bytes, str, str]
"""Image hash, expression and, where it matters, sample id."""


@dataclass(frozen=True, kw_only=True)
class Reusable:
    """Which rows of a plan need not be asked for, and where they lie."""

    sources: tuple[StoreHeader, ...]
    """Stores that hold at least one of them."""
    source_N: np.ndarray
    """int16 [N], index into `sources`; -1: the model must be asked."""
    row_N: np.ndarray
    """int64 [N], row of that store; undefined, as all that follows, where there is none."""
    holder_N: np.ndarray
    """int64 [N], row of that store that holds the image's candidates."""
    status_N: np.ndarray
    """uint8 [N], its status."""
    passed_N: np.ndarray
    """bool [N], whether it was written by a run whose canary passed."""
    failed_N: np.ndarray
    """bool [N], of rows that must be asked for (else undefined): whether image or request failed in another store."""
    unusable: tuple[str, ...] = ()
    """Why stores were passed over that would have fitted."""

    @property
    def num(self) -> int:
        """Rows that are taken over."""
        return int((self.source_N >= 0).sum())

    def known(self, start: int, stop: int) -> np.ndarray:
        """Whether rows `start` to `stop` of the plan are taken over: bool [stop - start]."""
        return self.source_N[start:stop] >= 0

    def counts(self, start: int, stop: int) -> dict[str, int]:
        """Rows taken over between two rows of the plan, by name of the store they come from."""
        found = Counter(self.source_N[start:stop].tolist())
        return {one.path.name: found[index] for index, one in enumerate(self.sources) if found[index]}

    def canary_passed(self, start: int, stop: int, own: bool | None = True) -> bool | None:
        """What the mark of a shard says of the canary: True only if it passed for every row.

        Args:
            start: First row.
            stop: Row after the last.
            own: Of the run that asked for the rows that are not taken over, None if it was not checked.
        """
        taken_passed = bool(self.passed_N[start:stop][self.known(start, stop)].all())
        return None if own and not taken_passed else own

    def statuses(self) -> Counter[AnswerStatus]:
        """Answers among all rows that are taken over."""
        return statuses_of(self.status_N[self.source_N >= 0])

    def columns(self, start: int, stop: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of the rows between `start` and `stop` that are taken over, in the plan's order.

        Each source is opened for the call alone, so that files and memory stay few however many shards there are.

        Raises:
            DataError: A store is damaged; it names the shard and the remedy.
        """
        taken = np.flatnonzero(self.known(start, stop)) + start
        found: dict[str, np.ndarray] = {}
        for index, source in enumerate(self.sources):
            here = np.flatnonzero(self.source_N[taken] == index)
            if not len(here):
                continue
            try:
                store = PriorStore(source.path)
                for name in names:
                    rows_N = self.holder_N if name == "candidates" else self.row_N
                    part = store.batch(name, rows_N[taken[here]])
                    if name not in found:
                        found[name] = np.empty((len(taken), *part.shape[1:]), part.dtype)
                    found[name][here] = part
            except DataError as error:
                raise DataError(f"{error}; or ask for its rows again: --set reuse=false") from None
        return found


def statuses_of(code_B: np.ndarray) -> Counter[AnswerStatus]:
    """How often each status is among some codes of the store."""
    return Counter(STATUS_BY_CODE[int(code)] for code in code_B)


def nothing_reusable(num: int) -> Reusable:
    """Of `num` rows, none that another store holds."""
    return Reusable(
        sources=(),
        source_N=np.full(num, -1, np.int16),
        row_N=np.zeros(num, np.int64),
        holder_N=np.zeros(num, np.int64),
        status_N=np.zeros(num, np.uint8),
        passed_N=np.zeros(num, bool),
        failed_N=np.zeros(num, bool),
    )


def find_reusable(
    config: PriorsConfig,
    identity: Mapping[str, Any],
    own_path: Path,
    samples: Sequence[Sample],
    image_hashes: Mapping[str, bytes],
) -> Reusable:
    """Look through the finished shards of the stores under `config.cache_root`.

    Where several stores hold a row, the first by name gives it. A store that cannot be read is passed over.

    Args:
        config: The run's configuration.
        identity: What its rows depend on.
        own_path: The run's own store, which is passed over; a renamed copy of it is not.
        samples: Rows of the plan.
        image_hashes: Content hash by file name, `shared.store.schema.IMAGE_HASH_BYTES` long; images that are not there
            have none.
    """
    with_ids = bool(config.model.num_samples)
    wanted: dict[_Key, list[int]] = {}
    for row, sample in enumerate(samples if config.reuse else ()):
        if (digest := image_hashes.get(sample.file_name)) is not None and _is_kept_whole(sample.expression):
            key = (digest, sample.expression, sample.sample_id if with_ids else "")
            wanted.setdefault(key, []).append(row)
    sources = list[StoreHeader]()
    unusable = unusable_stores(config.cache_root) if wanted else []
    found = nothing_reusable(len(samples))
    for path in find_stores(config.cache_root) if wanted else ():
        header = read_header(path)
        if path == own_path or not _fits(header, identity):
            continue
        before = len(wanted)
        try:
            _take(found, len(sources), header, wanted, with_ids, config.canary.mode == "refuse")
        except DataError as error:
            unusable.append(str(error))
        if len(wanted) < before:
            sources.append(header)
    return replace(found, sources=tuple(sources), unusable=tuple(unusable))


def _take(
    found: Reusable,
    index: int,
    header: StoreHeader,
    wanted: dict[_Key, list[int]],
    with_ids: bool,
    canary_must_pass: bool,
) -> None:
    """Note what a store's finished shards hold of the wanted rows, which are then wanted no longer.

    Raises:
        DataError: A store that is damaged; what its shards before gave stays.
    """
    store = PriorStore(header.path)
    holder_R = first_rows(store.column("image_id")) if "candidates" in header.fields else None
    for shard in store.done_shards:
        passed = read_mark(header, shard)["info"].get("canary_passed") is True
        if canary_must_pass and not passed:
            continue
        row_B = np.arange(*header.shard_bounds(shard))
        names = decode_text_rows(store.batch("sample_id", row_B)) if with_ids else [""] * len(row_B)
        texts = decode_text_rows(store.batch("expression", row_B))
        digests = [row.tobytes() for row in store.batch(IMAGE_HASH, row_B)]
        status_B = store.batch("status", row_B)
        for row, status, key in zip(row_B, status_B, zip(digests, texts, names, strict=True), strict=True):
            if key not in wanted:
                continue
            if STATUS_BY_CODE[int(status)] in FAILED:
                found.failed_N[wanted[key]] = True
                continue
            mine = wanted.pop(key)
            found.source_N[mine], found.row_N[mine], found.status_N[mine] = index, row, status
            found.holder_N[mine] = row if holder_R is None else holder_R[row]
            found.passed_N[mine] = passed


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


def _fits(header: StoreHeader, identity: Mapping[str, Any]) -> bool:
    """Whether a row of a store is what the run would write for the same image and expression."""
    theirs = header.attrs.get("fingerprint_fields", {})
    same = all(theirs.get(key) == identity[key] for key in identity if key not in WHICH_ROWS)
    return same and IMAGE_HASH in header.fields


def _is_kept_whole(expression: str) -> bool:
    """Whether a store holds an expression as it is, and holds no other one in the same way."""
    changed = any(char in "\0\ufffd" or "\ud800" <= char <= "\udfff" for char in expression)
    return not changed and not may_be_cut(expression, EXPRESSION_BYTES)
