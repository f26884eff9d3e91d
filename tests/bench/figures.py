"""What the benchmarks print: one table for people, then one JSON line per figure, which `table.py` gathers."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


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
    of: Mapping[str, str | int] = field(default_factory=dict)
    """What the chart finds it by, for example `peer`, `what`, `rows`, `workers`; empty if it is in no chart."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if not self.target:
            return None
        sign, bound = self.target.split()
        return self.value >= float(bound) if sign == ">=" else self.value <= float(bound)


VERDICTS = {None: "", True: "met", False: "MISSED"}
"""What the tables say for `Figure.met`."""


def figure(
    name: str,
    values: Sequence[float],
    unit: str,
    target: str = "",
    note: str = "",
    of: Mapping[str, str | int] | None = None,
) -> Figure:
    """The figure of some repeats."""
    return Figure(
        name=name,
        value=statistics.median(values),
        unit=unit,
        low=min(values),
        high=max(values),
        target=target,
        note=note,
        of=of or {},
    )


def print_figures(bench: str, figures: Sequence[Figure]) -> None:
    """The table, then the JSON lines."""
    for one in figures:
        spread = f"({one.low:.4g} to {one.high:.4g})"
        target = f"{one.target:8s} {VERDICTS[one.met]:6s}"
        print(f"{one.name:66s} {one.value:10.4g} {one.unit:8s} {spread:24s} {target} {one.note}".rstrip())
    for one in figures:
        print(json.dumps({"bench": bench, **asdict(one), "met": one.met}), flush=True)


def peak_mib() -> float:
    """Most memory that this process held at once since its program was started, MiB.

    `ru_maxrss` would be at least what the process that started it held then: Linux hands that number on.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
