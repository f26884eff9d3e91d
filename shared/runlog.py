"""What a long job says while it runs: a JSON-lines log with TensorBoard beside it, and a progress bar.

`metrics.jsonl` holds one object a line, `{"step": int, "kind": "train" | "val" | "resume", name: number, ...}`, in the
order written; steps never fall. It is flushed line by line, so a killed run loses at most the line being written.
TensorBoard's own files lie in `tensorboard/` and can be deleted at any time; nothing here reads them.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from shared.errors import DataError
from shared.store.publish import publish_file

T = TypeVar("T")

METRICS_FILE = "metrics.jsonl"
"""Name of the log in a run folder."""


def finite_or_none(value: Any) -> Any:
    """`value` ready for JSON: NumPy and torch scalars become Python's, numbers that are not finite become None.

    Dictionaries, lists and tuples are gone through; paths become text.
    """
    if isinstance(value, dict):
        return {str(key): finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def has_record(run_dir: str | Path, step: int, kind: str) -> bool:
    """Whether the log of a run has a whole record of this kind for this step."""
    path = Path(run_dir) / METRICS_FILE
    if not path.is_file():
        return False
    return any((record.get("step"), record.get("kind")) == (step, kind) for record in read_records(path))


class RunLog:
    """The log of one run; one process writes it.

    Args:
        run_dir: The run's folder; made if it is not there.
        tensorboard: Also write TensorBoard event files.
        resume_step: Steps that the restored checkpoint has done (0: started afresh in a folder that may hold the log
            of a run killed before its first checkpoint). Records of later steps are dropped. None appends without
            looking.
    """

    def __init__(
        self, run_dir: str | Path, *, tensorboard: bool = True, resume_step: int | None = None
    ) -> None:
        self.path = Path(run_dir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            _truncate(self.path, resume_step)
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        self._tensorboard: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            purge = None if resume_step is None else resume_step + 1
            self._tensorboard = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=purge)

    def log(self, step: int, kind: str, **scalars: Any) -> None:
        """Append one record and flush it.

        Args:
            step: Optimiser steps done.
            kind: `train`, `val` or `resume`.
            **scalars: Numbers (Python, NumPy or torch), texts or None; NaN and infinities are written as null.

        Raises:
            OSError: The disk is full, for example; the log is closed.
        """
        record = {"step": int(step), "kind": kind, **finite_or_none(scalars)}
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError:
            with contextlib.suppress(
                OSError
            ):  # drops what is still to be written, which closing would try again
                self._file.close()
            raise
        if self._tensorboard is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    self._tensorboard.add_scalar(f"{kind}/{name}", value, int(step))

    def close(self) -> None:
        """Close both files; calling it again does nothing."""
        try:
            self._file.close()
        finally:
            if self._tensorboard is not None:
                tensorboard, self._tensorboard = self._tensorboard, None
                tensorboard.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        first_tells = (OSError,) if error is not None else ()
        with contextlib.suppress(*first_tells):
            self.close()


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Read a log.

    Args:
        path: `metrics.jsonl`.

    Returns:
        Its records in file order. A last line cut short by a kill is left out.

    Raises:
        DataError: The file is missing, or another line is no record; names the line.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it
                break
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise DataError(f"{path}, line {number}: not a record with a step")
        records.append(record)
    return records


def _truncate(path: Path, step: int) -> None:
    """Drop the records after `step`, and a torn last line, in one rename."""
    if not path.exists():
        return
    kept = [record for record in read_records(path) if record["step"] <= step]
    publish_file(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


class ProgressBar:
    """Progress with rate and time left on standard error, as a context manager; call `update` as work gets done.

    On a terminal it is a tqdm bar. Elsewhere (a log file) it is one plain line about every `every_s` seconds and one at
    the end, so that a log stays readable.

    Args:
        total: Units of work in all, `initial` included.
        desc: What is being done; the attribute may be changed on the way.
        unit: Singular name of a unit.
        initial: Units done before; they count for the share, not for the rate.
        quiet: Print nothing.
        stream: Where to print; default standard error.
        every_s: Seconds between plain lines.
        clock: Seconds from any origin (tests).
    """

    def __init__(
        self,
        total: int,
        desc: str,
        unit: str = "step",
        *,
        initial: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.desc, self.unit, self.initial, self.done = total, desc, unit, initial, initial
        self._stream = stream or sys.stderr
        self._every_s, self._clock, self._quiet = every_s, clock, quiet
        self._started = self._said = clock()
        self._said_done = -1
        self._bar: Any = None
        if not quiet and self._stream.isatty():
            with contextlib.suppress(OSError):
                self._bar = tqdm(total=total, desc=desc, unit=unit, initial=initial, file=self._stream)

    def update(self, num: int = 1) -> None:
        """Count `num` more units as done."""
        self.done += num
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.set_description(self.desc, refresh=False)
                self._bar.update(num)
        elif not self._quiet and self._clock() - self._said >= self._every_s:
            self._say()

    def line(self) -> str:
        """The plain line: share done, rate, and the time left at that rate."""
        seconds = self._clock() - self._started
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        units = self.unit + ("es" if self.unit.endswith("ch") else "s")
        text = f"{self.desc}: {self.done}/{self.total} {units}{share}"
        if seconds <= 0 or self.done == self.initial:
            return text
        rate = (self.done - self.initial) / seconds
        per = f"{rate:.2f} {units}/s" if rate >= 1 else f"{1 / rate:.2f} s/{self.unit}"
        if self.done >= self.total:
            return f"{text}, {per}, took {duration(seconds)}"
        return f"{text}, {per}, {duration((self.total - self.done) / rate)} left"

    def _say(self) -> None:
        self._said, self._said_done = self._clock(), self.done
        with contextlib.suppress(OSError):  # its reader is gone, or the log's disk is full
            print(self.line(), file=self._stream, flush=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()
        elif not self._quiet and self._said_done != self.done:
            self._say()


def progress(
    iterable: Iterable[T],
    total: int,
    desc: str,
    quiet: bool = False,
    *,
    unit: str = "step",
    initial: int = 0,
) -> Iterator[T]:
    """Go through `iterable` under a `ProgressBar`; an item counts once the caller asks for the next."""
    with ProgressBar(total, desc, unit, initial=initial, quiet=quiet) as bar:
        for item in iterable:
            yield item
            bar.update()


def say(text: str, quiet: bool = False) -> None:
    """One message for a person, on standard error; work goes on where nobody reads it any more."""
    if not quiet:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 5 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
