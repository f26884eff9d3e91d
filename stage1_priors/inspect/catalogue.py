"""What is searched, counted and sorted: a store's small columns, in memory.

Legend: R rows of finished shards, N rows of the store. A *place* is an index into the R rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

import numpy as np

from shared.errors import DataError
from shared.store.reader import PriorStore
from shared.store.schema import SHARD_ROWS
from shared.types import STATUS_BY_CODE, AnswerStatus

PAGE_ROWS = 24
"""Pairs of one page."""
NUM_BINS = 24
"""Bars of the histogram of confidences."""
ORDERS = ("row", "least confident", "most confident")
GROUPS = ("without a prior", "with a prior")
"""Values of `Query.status` that stand for several statuses."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which pairs, in which order, which page of them."""

    text: str = ""
    """Part of the expression or of the `sample_id`, in either case."""
    status: str = ""
    """An answer's status, one of `GROUPS`, or empty for all."""
    split: str = ""
    """A split, or empty for all."""
    low: float | None = None
    """Least confidence, a log-probability."""
    high: float | None = None
    """Bound below which confidences lie."""
    order: str = "row"
    """One of `ORDERS`; unknown confidences come last."""
    page: int = 1
    """From 1."""

    def __post_init__(self) -> None:
        """Refuse what names nothing."""
        if self.status and self.status not in (*GROUPS, *AnswerStatus):
            raise DataError(f"status {self.status!r} is none of {', '.join((*GROUPS, *AnswerStatus))}")
        if self.order not in ORDERS:
            raise DataError(f"order {self.order!r} is none of {', '.join(ORDERS)}")
        if self.page < 1:
            raise DataError(f"page {self.page} is below 1")
        for name, value in (("low", self.low), ("high", self.high)):
            if value is not None and not math.isfinite(value):
                raise DataError(f"{name} {value} is not a finite number")

    @classmethod
    def parse(cls, parameters: Mapping[str, Sequence[str]]) -> "Query":
        """The query of an address's parameters; of repeated ones the last counts, unknown ones are refused.

        Raises:
            DataError: A parameter that is not known or not a number where one is needed, named.
        """
        values: dict[str, str | int | float] = {}
        for name, given in parameters.items():
            value = given[-1].strip()
            if name not in cls.__dataclass_fields__:
                raise DataError(f"unknown parameter {name!r}")
            if not value:
                continue
            try:
                convert = int if name == "page" else float if name in ("low", "high") else str
                values[name] = convert(value)
            except ValueError:
                raise DataError(f"{name} {value!r} is not a number") from None
        return cls(**values)  # type: ignore[arg-type]

    def address(self, **changes: str | int | float | None) -> str:
        """Relative address of this query with some parts changed; the page starts anew unless it is given."""
        query = replace(self, **{"page": 1, **changes})  # type: ignore[arg-type]
        default = Query()
        parts = {name: getattr(query, name) for name in self.__dataclass_fields__}
        changed = {name: value for name, value in parts.items() if value != getattr(default, name)}
        return f"/?{urlencode(changed)}" if changed else "/"


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of the known confidences."""

    count_K: np.ndarray
    """int [K], by bin."""
    edge_K1: np.ndarray
    """float64 [K + 1], log-probabilities, rising."""
    num_unknown: int
    """Rows without a confidence."""


class Catalogue:
    """The small columns of a store's finished shards.

    Attributes:
        rows_R: int64, row numbers in the store.
        status_R: u8, codes of `shared.types`.
        confidence_R: float64, mean log-probability of the coordinate tokens; NaN if unknown.
        split_R: u8, index into `splits`.
        splits: Names of the splits.
    """

    def __init__(self, store: PriorStore) -> None:
        """Read the columns once.

        Raises:
            DataError: No shard is finished, or the store is damaged.
        """
        shards = store.done_shards
        if not shards:
            raise DataError(f"{store.path}: no shard is finished yet; run `l2l priors run` first")
        bounds = [(shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, store.num_rows)) for shard in shards]
        self.rows_R = np.concatenate([np.arange(start, stop) for start, stop in bounds])
        self.status_R = store.batch("status", self.rows_R)
        self.confidence_R = store.batch("confidence", self.rows_R).astype(np.float64)
        self.split_R = store.batch("split", self.rows_R)
        self.splits = list(store.attrs["splits"])
        ids = store.sample_ids
        expressions = store.texts("expression", self.rows_R)
        self._search_R = [
            f"{expression}\n{ids[row]}".casefold()
            for expression, row in zip(expressions, self.rows_R.tolist(), strict=True)
        ]

    def __len__(self) -> int:
        """R."""
        return len(self.rows_R)

    def status_counts(self) -> dict[AnswerStatus, int]:
        """Answers by status, the commonest first."""
        codes, counts = np.unique(self.status_R, return_counts=True)
        found = {STATUS_BY_CODE[int(code)]: int(count) for code, count in zip(codes, counts, strict=True)}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def histogram(self) -> Histogram | None:
        """The confidences in `NUM_BINS` bins of one width; None if none is known."""
        known = self.confidence_R[np.isfinite(self.confidence_R)]
        if not len(known):
            return None
        count_K, edge_K1 = np.histogram(known, bins=NUM_BINS)
        return Histogram(count_K=count_K, edge_K1=edge_K1, num_unknown=len(self) - len(known))

    def select(self, query: Query) -> np.ndarray:
        """Rows of the store that fit a query, in its order: int64, all pages.

        Raises:
            DataError: A split that the store does not hold.
        """
        keep_R = np.isin(self.status_R, _codes(query.status))
        if query.split:
            if query.split not in self.splits:
                raise DataError(f"split {query.split!r} is none of {', '.join(self.splits)}")
            keep_R &= self.split_R == self.splits.index(query.split)
        if query.low is not None:
            keep_R &= self.confidence_R >= query.low
        if query.high is not None:
            keep_R &= self.confidence_R < query.high
        places = np.flatnonzero(keep_R)
        if query.text:
            wanted = query.text.casefold()
            found = [place for place in places.tolist() if wanted in self._search_R[place]]
            places = np.array(found, np.int64)
        if query.order != "row":
            value = self.confidence_R[places]  # NaN sorts last in either direction
            places = places[np.argsort(value if query.order == "least confident" else -value, kind="stable")]
        return self.rows_R[places]


def _codes(status: str) -> list[int]:
    """Codes of the statuses that `Query.status` stands for."""
    if status in GROUPS:
        return [code for code, one in STATUS_BY_CODE.items() if one.has_prior == (status == "with a prior")]
    return [code for code, one in STATUS_BY_CODE.items() if status in ("", one)]
