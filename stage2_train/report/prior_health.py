"""What the prior store behind a run says about itself: its canary, and how many answers hold a box."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.types import AnswerStatus
from stage2_train.report.run_data import RunData, finite
from stage2_train.report.sources import store_of


@dataclass(frozen=True, kw_only=True)
class PriorHealth:
    """What a store says about itself."""

    path: str
    """Where it lies."""
    fingerprint: str
    """Its fingerprint as the run saw it."""
    canary: str
    """`passed`, `failed`, `skipped` or `unknown`."""
    canary_detail: str
    """The canary's own figures, one line, or empty."""
    statuses: tuple[tuple[str, int], ...]
    """(answer status, rows), most frequent first."""
    problem: str
    """Why the store could not be read, or empty."""

    @property
    def num_rows(self) -> int:
        """Answers counted."""
        return sum(count for _, count in self.statuses)

    @property
    def num_usable(self) -> int:
        """Rows with a usable box or a mask from outside."""
        known = {status.value for status in AnswerStatus if status.has_prior}
        return sum(count for name, count in self.statuses if name in known)

    @property
    def usable_share(self) -> float | None:
        """Share of such rows; None without counts."""
        return self.num_usable / self.num_rows if self.num_rows else None


def prior_health(run: RunData) -> PriorHealth | None:
    """Ask the store of `run` for its canary and its status counts; None for a run without a store."""
    if not run.store.get("path"):
        return None
    path = store_of(run) or Path(str(run.store["path"]))
    status, problem = _read_status(path)
    if run.store.get("fingerprint") not in (None, status.get("fingerprint")):
        status, problem = {}, problem or "another store lies there now"
    canary, counts = status.get("canary"), status.get("status_counts", {})
    by_shard = status.get("canary_by_shard", set())
    return PriorHealth(
        path=str(path),
        fingerprint=str(run.store.get("fingerprint") or status.get("fingerprint") or ""),
        canary=_canary_word(canary, by_shard),
        canary_detail=_canary_detail(canary),
        statuses=tuple(sorted(counts.items(), key=lambda pair: -pair[1])),
        problem=problem,
    )


def _read_status(path: Path) -> tuple[dict[str, Any], str]:
    """Counts and canary of a store, and why they could not be read, if so."""
    from shared.store.layout import read_header
    from shared.store.marks import read_mark
    from shared.store.verify import store_status

    if not path.exists():
        return {}, "the store is not there any more"
    try:
        status, header = store_status(path), read_header(path)
        infos = [read_mark(header, shard).get("info", {}) for shard in status["done_shards"]]
    except (DataError, OSError) as error:
        return {}, f"the store could not be read: {error}"
    by_shard = {info["canary_passed"] for info in infos if "canary_passed" in info}
    return {**status, "canary": header.attrs.get("canary"), "canary_by_shard": by_shard}, ""


def _canary_word(canary: Any, by_shard: set[bool | None]) -> str:
    """The worst of what the store and its shards say: a store may be continued by a run that checked nothing."""
    verdicts = set(by_shard)
    if isinstance(canary, dict) and "passed" in canary:
        verdicts.add(canary["passed"])
    if not verdicts:
        return "unknown"
    return "failed" if False in verdicts else "skipped" if None in verdicts else "passed"


def _canary_detail(canary: Any) -> str:
    """One line: what was measured."""
    if not isinstance(canary, dict) or not canary.get("scenes"):
        return ""
    text = f"{canary.get('with_box')} boxes on {canary['scenes']} drawn scenes"
    if (mean := finite(canary.get("mean_iou"))) is not None:
        text = f"mean IoU {mean:.2f}, {text}"
    if canary.get("other_frame"):
        text += f"; the boxes would fit in another frame: {canary['other_frame']}"
    return text
