"""What the report knows of one run, and what follows from it."""

import itertools
import json
import math
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stage2_train.label_share import label_share
from stage2_train.report.lenient_json import read_jsonl
from stage2_train.run_code import codes_of
from stage2_train.run_identity import identity_of

REPORT_ORDER = ("val", "testA", "testB", "test", "train")
"""Splits in the order the report shows them; others follow by name."""

FIELDS = tuple(
    f"{source}{figure}_original" for source in ("", "prior_") for figure in ("iou", "inter", "union")
)
"""Figures of a sentence that the report reads."""

_SAYS_NOTHING = (
    "seed=",
    "split_seed=",
    "fraction=",
    "runtime.",
    "alarm.",
    "store=",
    "cache_root=",
    "data.root=",
)


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """The scores of one run on one split."""

    split: str
    """Name of the split."""
    summary: dict[str, Any]
    """`eval/<split>.json` as written."""
    sample_ids: tuple[str, ...]
    """Identities of the sentences, each once; empty if `eval/<split>.jsonl` is missing."""
    expressions: tuple[str, ...]
    """The sentences."""
    image_ids: tuple[str, ...]
    """Of the image of each."""
    columns: dict[str, np.ndarray]
    """f64 [num sentences] by name in `FIELDS`, NaN where one is absent."""
    file: Path
    """`eval/<split>.jsonl`."""

    @classmethod
    def of(
        cls, split: str, summary: dict[str, Any], rows: list[dict[str, Any]], file: Path = Path()
    ) -> "EvalData":
        """What is kept of the rows of a file: not the masks, which are most of it and asked for by few cards.

        Text is kept once for all runs: many runs of one report are scored on the same sentences.
        """

        def column(name: str) -> np.ndarray:
            values = (finite(row.get(name)) for row in rows)
            return np.array([math.nan if value is None else value for value in values], dtype=np.float64)

        def texts(name: str, default: str | None = None) -> tuple[str, ...]:
            return tuple(sys.intern(str(row.get(name, default))) for row in rows)

        return cls(
            split=split,
            summary=summary,
            sample_ids=texts("sample_id"),
            expressions=texts("expression", ""),
            image_ids=texts("image_id"),
            columns={name: column(name) for name in FIELDS},
            file=file,
        )

    @property
    def num(self) -> int:
        """Sentences scored."""
        return int(self.summary.get("num") or len(self.sample_ids))

    @property
    def resolution_hw(self) -> tuple[int, int] | None:
        """The model's own resolution, pixels."""
        size = self.summary.get("resolution")
        return (int(size[0]), int(size[1])) if isinstance(size, list) and len(size) == 2 else None

    @property
    def scored_data(self) -> dict[str, Any]:
        """What `eval/<split>.json` says of the data set of the sentences; empty of an older code."""
        scored = self.summary.get("data")
        return scored if isinstance(scored, dict) else {}

    def score(self, frame: str, metric: str, *, source: str = "") -> float | None:
        """One number in [0, 1].

        Args:
            frame: `original` (the image's own size) or `model` (the model's resolution).
            metric: `oiou`, `miou`, `pr@0.5`, ...
            source: "" for the model, `prior` for the frozen prior alone, `self_guided` or `with_prior` for its
                second passes.
        """
        table = self.summary.get(source) if source else self.summary
        frame_scores = table.get(frame) if isinstance(table, dict) else None
        return finite(frame_scores.get(metric)) if isinstance(frame_scores, dict) else None

    def by_id(self) -> dict[str, dict[str, Any]]:
        """`expression` and `FIELDS` of every sentence, by its identity."""
        columns = {"expression": self.expressions, **{name: self.columns[name].tolist() for name in FIELDS}}
        return {
            key: dict(zip(columns, values, strict=True))
            for key, *values in zip(self.sample_ids, *columns.values(), strict=True)
        }

    def predictions(self, sample_ids: Collection[str]) -> dict[str, Any]:
        """`pred_rle` of some sentences as their file holds it now; none from a file that is gone."""
        rows = read_jsonl(self.file, [])
        return {key: row.get("pred_rle") for row in rows if (key := str(row.get("sample_id"))) in sample_ids}


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Everything the report knows about one run."""

    path: Path
    """The run directory."""
    name: str
    """Its label in the report, unique among the runs given."""
    config: dict[str, Any]
    """`config.json` as written."""
    split: dict[str, Any]
    """`split.json`, or empty."""
    metrics: list[dict[str, Any]]
    """`metrics.jsonl` in file order."""
    evals: dict[str, EvalData]
    """Scores by split, in report order."""
    done: dict[str, Any]
    """`done.json`, or empty: the run did not finish."""
    grid: str = ""
    """Name of the grid that it is a run of; empty for none."""
    called: str = ""
    """What that grid calls its method."""
    missing: list[str] = field(default_factory=list)
    """One line for each part that could not be read."""

    @property
    def method(self) -> str:
        """Name of the training method."""
        return str(self.config.get("method") or "unknown")

    def settings(self, field: str) -> Any:
        """The value of a field of its config (`a.b`), or of a group of them; None if it does not say."""
        value = self.config.get("config")
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    @property
    def changes(self) -> tuple[str, ...]:
        """What was changed of its recipe, but for seeds, share of labels and places."""
        changes = map(str, self.config.get("overrides") or [])
        return tuple(one for one in changes if not one.startswith(_SAYS_NOTHING))

    @cached_property
    def arm(self) -> str:
        """What it ran, to compare: its settings but for seeds, share of labels, places and how it was run, as JSON."""
        config = self.config.get("config")
        config = config if isinstance(config, dict) else {"method": self.method}
        identity = identity_of({**self.config, "config": config, "store": self.store})
        for name in ("seed", "split_seed", "fraction"):
            identity["config"].pop(name, None)
        return json.dumps(identity, sort_keys=True)

    @property
    def seed(self) -> Any:
        """Seed of the run; the draw of the labelled images has one of its own."""
        return self.config.get("seed")

    @property
    def fraction(self) -> float | None:
        """Share of the train images that were read with masks, in [0, 1] (`label_share`)."""
        value = self.config.get("fraction")
        asked = finite(self.split.get("fraction") if value is None else value)
        total = finite(self.split.get("num_train_images"))
        return label_share(asked, self.labelled[0], None if total is None else int(total))

    @property
    def weak_label(self) -> str:
        """What the unlabelled objects carry besides: `box`, `point`, or nothing."""
        return str(self.split.get("weak_label") or "")

    @property
    def codes(self) -> tuple[str, ...]:
        """Hashes of the source files that trained the run, in order; none if it does not say."""
        return codes_of(self.config, self.metrics)

    @property
    def num_processes(self) -> tuple[int, ...]:
        """Processes of each start that differed from the one before."""
        records = [self.config, *(record for record in self.metrics if record.get("kind") == "resume")]
        counts = [int(n) for record in records if (n := finite(record.get("num_processes")))]
        return tuple(count for count, _ in itertools.groupby(counts))

    @property
    def data(self) -> dict[str, Any]:
        """The data set's configuration: `root`, `dataset`, `split_by`; empty if the run did not say."""
        found = _find(self.config.get("config"), "data", _is_data)
        return found if isinstance(found, dict) else {}

    def data_of(self, split: str) -> str:
        """What the sentences of a split are of: the hash of the annotations, or the place where nothing says it."""
        scored = self.evals[split].scored_data
        own = scored.get("dataset") in (None, self.data.get("dataset")) and not scored.get("name")
        known = scored.get("annotations") or (self.config.get("data_fingerprint") if own else None)
        places = (scored.get(name) or self.data.get(name) for name in ("root", "dataset", "split_by"))
        return str(known) if known else " ".join(map(str, places))

    @property
    def logged_step(self) -> int:
        """The last optimiser step that the log knows; 0 for none."""
        return int(max((step for row in self.metrics if (step := finite(row.get("step")))), default=0))

    @property
    def store(self) -> dict[str, Any]:
        """`path` and `fingerprint` of the prior store; empty for a run without one."""
        store = self.config.get("store")
        if isinstance(store, str):
            return {"path": store}
        return store if isinstance(store, dict) else {}

    @property
    def labelled(self) -> tuple[int | None, int | None]:
        """Labelled images and labelled references."""
        ids = self.split.get("image_ids")
        num_refs = self.split.get("num_refs")
        return (len(ids) if isinstance(ids, list) else None, int(num_refs) if num_refs is not None else None)


def in_report_order(splits: list[str]) -> list[str]:
    """Known splits first, in `REPORT_ORDER`, then the others by name."""
    known = [split for split in REPORT_ORDER if split in splits]
    return known + sorted(set(splits) - set(known))


def finite(value: Any) -> float | None:
    """`value` as a float if it is a finite number, else None (booleans are no numbers here)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _is_data(value: Any) -> bool:
    return isinstance(value, dict) and {"root", "dataset"} <= set(value)


def _find(tree: Any, name: str, accept: Any) -> Any:
    """The first value of `tree` that `accept` takes: under `name` if there is one, else anywhere below."""
    if not isinstance(tree, dict):
        return None
    if accept(tree.get(name)):
        return tree[name]
    for value in tree.values():
        found = value if accept(value) else _find(value, name, accept)
        if found is not None:
            return found
    return None
