"""Which GPUs there are, and whether they hold what is to be started."""

import os

import pytest

from shared import gpu_build
from shared.errors import DataError
from stage1_priors.config import EngineConfig
from stage1_priors.devices import groups_of, require_gpus, visible_gpus


def test_the_environment_names_the_gpus(monkeypatch):
    for named, found in (("3, 5", ["3", "5"]), ("", []), ("1,-1,2", ["1"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_gpus() == found


def test_a_driver_that_does_not_answer_shows_no_gpu(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_build, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(gpu_build, "DRIVER_FILES", tmp_path / "none")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for mode in (0o755, 0o644):  # one that hangs, one that may not be run
        program.chmod(mode)
        if mode == 0o644:
            monkeypatch.setenv("PATH", str(tmp_path))
        assert visible_gpus() == []


def test_without_nvidia_smi_the_driver_shows_its_gpus(monkeypatch, tmp_path):
    """Containers that were given the driver for computing alone; torch finds its GPUs there."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu_build, "DRIVER_FILES", tmp_path)
    for name in ("0000:18:00.0", "0000:2a:00.0"):
        (tmp_path / name).mkdir()
    assert visible_gpus() == ["0", "1"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")  # which answers that there are none
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == []


def test_groups_of_gpus():
    assert groups_of(["0", "1", "2", "3", "4"], 2) == [["0", "1"], ["2", "3"]]
    assert groups_of(["a", "b"], 1) == [["a"], ["b"]]
    assert groups_of(["0"], 2) == groups_of([], 1) == []


def test_more_workers_than_the_gpus_hold_are_refused():
    """Each takes its share of a GPU's memory; the second on one would fail while the first is at work."""
    require_gpus(EngineConfig(gpu_memory=0.9), 2, ["0", "1"])
    require_gpus(EngineConfig(gpu_memory=0.5), 4, ["0", "1"])
    require_gpus(EngineConfig(gpu_memory=0.1), 10, ["0"])
    require_gpus(EngineConfig(kind="transformers"), 3, ["0"])
    require_gpus(EngineConfig(), 3, [])
    with pytest.raises(
        DataError, match=r"--workers is 3, so that 2 share a GPU.*gpu_memory=0.9 of it; 2 workers"
    ):
        require_gpus(EngineConfig(gpu_memory=0.9), 3, ["0", "1"])
    with pytest.raises(DataError, match=r"--workers is 2, so that 2 share a GPU"):
        require_gpus(EngineConfig(gpu_memory=0.6, gpus=2), 2, ["0", "1", "2"])


def test_a_model_over_several_gpus_needs_so_many():
    require_gpus(EngineConfig(gpus=4), 2, [str(gpu) for gpu in range(8)])
    with pytest.raises(DataError, match=r"engine.gpus is 4, and of GPUs this process may use 2 \(0, 1\)"):
        require_gpus(EngineConfig(gpus=4), 1, ["0", "1"])
    with pytest.raises(DataError, match="engine.gpus is 2, and of GPUs this process may use none"):
        require_gpus(EngineConfig(gpus=2), 1, [])
    with pytest.raises(DataError, match="engine.gpus is 2, but engine.kind=transformers uses one"):
        EngineConfig(kind="transformers", gpus=2)
