"""How much memory can still be had, and whether the workers of a run will be content with it (Linux).

A batch job and a container may take less than the machine has: their control group says how much, and the kernel kills
whoever takes more, without a word.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shared.errors import DataError
from shared.json_files import read_json
from shared.model_files import model_files
from stage1_priors.chunks import NUMBER_BYTES
from stage1_priors.config import ImportConfig, PriorsConfig

_NO_LIMIT = 1 << 60
"""Version 1 writes about 2^63 where there is no limit."""


@dataclass(frozen=True, kw_only=True)
class _Version:
    """What a version of control groups calls its files."""

    mount: str
    """Where groups with a limit on memory lie, below `/sys/fs/cgroup`."""
    limit: str
    """File with the limit, bytes."""
    usage: str
    """File with what is taken, bytes, files that the kernel keeps in memory included."""
    kept_files: tuple[str, ...]
    """Lines of `memory.stat` with those files, which make way for others."""


_V1 = _Version(
    mount="memory",
    limit="memory.limit_in_bytes",
    usage="memory.usage_in_bytes",
    kept_files=("total_inactive_file", "total_active_file"),
)
_V2 = _Version(
    mount="", limit="memory.max", usage="memory.current", kept_files=("inactive_file", "active_file")
)


def require_memory(
    config: PriorsConfig | ImportConfig, num_workers: int, on_gpus: bool, model_gb: float
) -> None:
    """Refuse workers whose images, caches and weights alone take more than there is left: the kernel would kill one.

    Args:
        config: The recipe.
        num_workers: Processes, each with a copy of everything.
        on_gpus: Whether key-value cache and weights lie on GPUs.
        model_gb: Memory for the weights of the models, GiB.

    Raises:
        DataError: Says what they take and what there is.
    """
    if isinstance(config, ImportConfig):
        return
    engine, caches, names = config.engine, 0.0, "engine.image_gb, engine.image_cache_gb"
    if engine.kind == "vllm":
        caches = engine.image_gb + (engine.image_cache_gb if engine.caching else 0)
        if not on_gpus:
            caches, names = caches + engine.kv_cache_gb, f"{names}, engine.kv_cache_gb"
    weights = 0.0 if on_gpus else model_gb
    free = free_gb()
    if free is not None and num_workers * (caches + weights) > free:
        parts = [f"{num_workers * caches:.3g} GiB for images and caches ({names})"] if caches else []
        if weights:
            parts.append(f"{num_workers * weights:.3g} GiB for the weights of the models")
        raise DataError(
            f"{f'{num_workers} workers take' if num_workers > 1 else 'this run takes'} {' and '.join(parts)}, and "
            f"{free:.3g} GiB are left on this machine or in this job"
        )


def weights_gb(folder: Path, dtype: str) -> float:
    """Memory for a model's weights, GiB: the size of its files, where these hold numbers of the format asked for.

    Args:
        folder: The model's folder.
        dtype: Number format of the weights in memory.
    """
    size = sum(path.stat().st_size for path in model_files(folder))
    config = read_json(folder / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype") or dtype
    return size * NUMBER_BYTES[dtype] / NUMBER_BYTES.get(stored, NUMBER_BYTES[dtype]) / 2**30


def free_gb(root: Path = Path("/")) -> float | None:
    """Memory that this process can have without swapping, GiB: the least of the machine's and its control groups'.

    Args:
        root: Folder that holds `proc` and `sys` (tests).

    Returns:
        None where nobody says.
    """
    known = [*_of_the_machine(root), *_of_groups(root)]
    return max(0, min(known)) / 2**30 if known else None


def _of_the_machine(root: Path) -> Iterator[int]:
    lines = _text(root / "proc/meminfo").splitlines()
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _of_groups(root: Path) -> Iterator[int]:
    """What each group that holds this process leaves, bytes; nothing of one without a limit."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = _V1 if controllers else _V2
        mount = root / "sys/fs/cgroup" / version.mount
        own = PurePosixPath(
            place.lstrip("/")
        )  # of a container it may be the name outside, which is not there
        for group in (own, *own.parents):
            yield from _left(mount / group, version)


def _left(group: Path, version: _Version) -> Iterator[int]:
    limit, usage = _text(group / version.limit).strip(), _text(group / version.usage).strip()
    if not limit.isdecimal() or not usage.isdecimal() or int(limit) >= _NO_LIMIT:
        return
    pairs = (line.partition(" ") for line in _text(group / "memory.stat").splitlines())
    kept = sum(int(value) for name, _, value in pairs if name in version.kept_files)
    yield int(limit) - int(usage) + kept


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
