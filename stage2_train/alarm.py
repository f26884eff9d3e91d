"""Stops a run that has collapsed: its loss is not finite, or its pseudo-labels are nearly nothing or all foreground."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from shared.errors import DataError

_LOWER = "lower optim.lr (with muon: optim.muon.lr and optim.muon.adam_lr)"


class CollapseError(DataError):
    """Training has collapsed; the message says what was seen."""


@dataclass(frozen=True, kw_only=True)
class AlarmConfig:
    """When a run is stopped because it has collapsed."""

    patience: int = 50
    """Consecutive steps outside the bounds; 0 never stops. A loss or gradient that is not finite stops at once, also
    then."""
    grace_steps: int | None = None
    """First steps after the burn-in, in which the bounds do not count; None: a fiftieth of all steps, at least 100."""
    min_coverage: float = 0.02
    """Least share of unlabelled pixels that carry a pseudo-label."""
    min_foreground: float = 0.0005
    """Least share of unlabelled pixels labelled foreground."""
    max_foreground: float = 0.6
    """Largest such share."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.patience < 0 or (self.grace_steps or 0) < 0:
            raise DataError("alarm.patience and alarm.grace_steps must not be negative")
        if not 0 <= self.min_foreground < self.max_foreground <= 1 or not 0 <= self.min_coverage <= 1:
            raise DataError("alarm: need 0 <= min_foreground < max_foreground <= 1 and min_coverage in [0,1]")


class CollapseAlarm:
    """Counts consecutive steps out of bounds; the counts travel with checkpoints."""

    def __init__(self, config: AlarmConfig, first_step: int = 0) -> None:
        """Start with no strikes; the bounds count from `first_step` on."""
        self.config, self._first_step = config, first_step
        self.strikes: dict[str, int] = {}

    def check(self, step: int, loss: float, shares: Mapping[str, float], grad_norm: float = 0.0) -> None:
        """Look at one step.

        Args:
            step: 0-based step.
            loss: Its loss, over all processes.
            shares: `coverage` and `foreground` of the pseudo-labels; empty where there are none.
            grad_norm: Norm of its gradient, where it is known.

        Raises:
            CollapseError: Loss or gradient is not finite, or a share was out of bounds for `patience` steps in a row.
        """
        for name, value in (("loss", loss), ("norm of the gradient", grad_norm)):
            if not math.isfinite(value):
                raise CollapseError(
                    f"step {step}: the {name} is {value}; {_LOWER}, or set optim.grad_clip, and train anew in another "
                    "folder"
                )
        config = self.config
        if not config.patience or step < self._first_step:
            return
        bounds = {
            "coverage": (config.min_coverage, 1.0),
            "foreground": (config.min_foreground, config.max_foreground),
        }
        for name, value in shares.items():
            low, high = bounds[name]
            self.strikes[name] = 0 if low <= value <= high else self.strikes.get(name, 0) + 1
            if self.strikes[name] >= config.patience:
                raise CollapseError(
                    f"step {step}: pseudo-label {name} was outside {low}..{high} for {config.patience} steps "
                    f"(now {value:.4g}): the run has collapsed; if such figures are expected (tiny objects, for "
                    f"example), go on with --resume --set alarm.patience=0; else {_LOWER} and train anew in "
                    "another folder"
                )
