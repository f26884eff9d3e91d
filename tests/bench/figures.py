"""What the benchmarks print: one table for people, then one JSON line per figure."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number."""

    name: str
    """What was measured."""
    value: float
    """The median of the repeats."""
    unit: str
    """`x` for a ratio, else `s`, `pairs/s`, `MiB`, ..."""
    low: float
    """The least of the repeats."""
    high: float
    """The greatest of the repeats."""
    target: str = ""
    """What it should be, for example `>= 10`; empty if it is only reported."""
    note: str = ""
    """Under which circumstances."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if not self.target:
            return None
        sign, bound = self.target.split()
        return self.value >= float(bound) if sign == ">=" else self.value <= float(bound)


def figure(name: str, values: Sequence[float], unit: str, target: str = "", note: str = "") -> Figure:
    """The figure of some repeats."""
    value = statistics.median(values)
    return Figure(
        name=name, value=value, unit=unit, low=min(values), high=max(values), target=target, note=note
    )


def print_figures(bench: str, figures: Sequence[Figure]) -> None:
    """The table, then the JSON lines."""
    verdict = {None: "", True: "met", False: "MISSED"}
    for one in figures:
        spread = f"({one.low:.4g} to {one.high:.4g})"
        target = f"{one.target:8s} {verdict[one.met]:6s}"
        print(f"{one.name:52s} {one.value:10.4g} {one.unit:8s} {spread:24s} {target} {one.note}".rstrip())
    for one in figures:
        print(json.dumps({"bench": bench, **asdict(one), "met": one.met}))
