"""What a cluster is like: `cluster.toml`, one file per site, every key optional.

    partition = "gpu"
    account = "vision"
    time = "12:00:00"
    gpus_per_node = 4
    setup = ["module load python/3.11", "source .venv/bin/activate"]

A key is a field of `SiteConfig`.
"""

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shared.errors import DataError

DEFAULT_FILE = "cluster.toml"
"""Read from the working folder where no file is named; without one every field has its default."""

EARLY_S = 60
"""Slurm looks at its time limits once a minute, so that a signal may come by that much before its time."""

_WORD = re.compile(r"[A-Za-z0-9_.,:+@/-]*")
_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """How jobs are asked for at one site."""

    partition: str = ""
    """Partition; "" leaves the choice to Slurm."""
    account: str = ""
    """Account that is charged; "" is the user's own."""
    time: str = "24:00:00"
    """Time limit of a job, as `--time` takes it. A job that meets it is stopped in order, queued again and goes on, so
    it bounds a turn, not the work; it must exceed the time of starting and of one shard."""
    notice_s: int = 120
    """Seconds before the limit at which a job is told to stop; what is still busy shortly before it is killed."""
    max_restarts: int = 100
    """A job that was queued again this often fails: it makes no headway."""
    gpus_per_node: int = 1
    """GPUs of a node; 0 for a cluster without. A training takes all of them, a task of an array takes
    one, or `engine.gpus` of them."""
    gpu_type: str = ""
    """Type of GPU to ask for (`a100` gives `--gres=gpu:a100:1`); "" takes any."""
    cpus_per_process: int = 4
    """Cores per process: of a training one per GPU, of an array one per task."""
    memory_mb_per_process: int = 0
    """Memory per process, MB; 0 takes the partition's default."""
    max_array_size: int = 0
    """`MaxArraySize` of the site; a wider array becomes several. 0: as `scontrol show config` says."""
    max_running: int = 0
    """Tasks of an array that run at once; 0: as many as the queue lets."""
    setup: tuple[str, ...] = ()
    """Lines of shell at the head of every job, for example `module load python/3.11`; one that fails ends the job."""
    python: str = ""
    """Interpreter inside the job; "" takes the one that submits."""
    container: str = ""
    """Words put before every command, for example `apptainer exec --nv l2l.sif`."""
    sbatch: tuple[str, ...] = ()
    """More options of sbatch, one a line, for example `--constraint=a100`."""

    def __post_init__(self) -> None:
        """Refuse values of another type, text that would not stay within its line, and a limit within the notice."""
        for name in ("setup", "sbatch"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind:  # True is no number of GPUs
                raise DataError(f"{field.name} is {value!r}, expected {_NAMES[kind]}")
            for line in _lines_of(value):
                if not isinstance(line, str) or "\n" in line or "\r" in line:
                    raise DataError(f"{field.name} holds {line!r}, expected one line of text")
        for name in ("partition", "account", "gpu_type"):
            if not _WORD.fullmatch(getattr(self, name)):
                raise DataError(f"{name} is {getattr(self, name)!r}, expected a word")
        if not _TIME.fullmatch(self.time):
            raise DataError(f"time is {self.time!r}, expected for example 90, 12:00:00 or 2-00:00:00")
        limit_s = seconds_of(self.time)
        if 0 < limit_s <= self.notice_s + EARLY_S:
            raise DataError(
                f"time is {self.time!r}, expected more than notice_s ({self.notice_s} s) and {EARLY_S} s, by which "
                "Slurm may be early: a job would be told to stop at once"
            )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}, expected at least {least}")
        for line in self.sbatch:
            if not line.startswith("--"):
                raise DataError(f"sbatch holds {line!r}, expected an option such as --constraint=a100")


def seconds_of(time: str) -> int:
    """Seconds of a time limit as `--time` takes it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S; 0 is none."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = parts + [0] * (3 - len(parts))
    elif len(parts) < 3:
        hours, (minutes, seconds) = 0, parts + [0] * (2 - len(parts))
    else:
        hours, minutes, seconds = parts
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _lines_of(value: Any) -> tuple[Any, ...]:
    """What of a field's value must be single lines of text."""
    return value if isinstance(value, tuple) else (value,) if isinstance(value, str) else ()


_NAMES = {str: "text", int: "a whole number", tuple: "a list of lines"}
_LEAST = {
    "notice_s": 1,
    "max_restarts": 0,
    "gpus_per_node": 0,
    "cpus_per_process": 1,
    "memory_mb_per_process": 0,
    "max_array_size": 0,
    "max_running": 0,
}


def read_site(path: Path | None) -> SiteConfig:
    """The site of a file; None takes `cluster.toml` of the working folder, or the defaults where there is none.

    Raises:
        DataError: No such file, no TOML, an unknown key or a value its field refuses; names file, key and value.
    """
    if path is None:
        path = Path(DEFAULT_FILE)
        if not path.exists():
            return SiteConfig()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: cannot be read as TOML: {error}") from error
    known = [field.name for field in fields(SiteConfig)]
    for key in values:
        if key not in known:
            raise DataError(f"{path}: {key}: no such key (there are {', '.join(known)})")
    try:
        return SiteConfig(**values)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
