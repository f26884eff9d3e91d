"""Training and what follows it, on a device that is not the CPU: nothing stays behind, and the host seldom waits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stage2_train.backbones import TEXT_TOWERS, VISION_TOWERS
from stage2_train.method_facts import METHOD_FACTS

AT_THE_END = [["_local_scalar_dense", "train_step", 2], ["tolist", "_reduce", 2]]
"""Of two steps: the gradient's norm, once the update is under way, and the figures of the log."""
MORE = {
    "catm": [["copy from the device", "finish_step", 2]],
    "l2l": [
        ["copy from the device", "act", 2],  # after the pass with gradient: the policy lives on the CPU
        ["copy from the device", "add", 2],
        ["copy from the device", "observe", 2],
        ["nonzero", "_field_rows", 4],  # first of all, when there is nothing to wait for
    ],
}
"""What else methods wait for."""


@pytest.fixture(scope="module")
def session(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("other device")
    command = [sys.executable, "-m", "tests.stage2_train.other_device_session", str(mini_root), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("method", METHOD_FACTS)
def test_every_method_trains_there_as_on_the_cpu(session: dict[str, Any], method: str) -> None:
    run = session["runs"][method]
    assert len(run["cpu"]) == 2 and run["device"] == pytest.approx(run["cpu"], rel=1e-4)


@pytest.mark.parametrize("method", METHOD_FACTS)
def test_a_step_waits_for_the_device_nowhere_else(session: dict[str, Any], method: str) -> None:
    assert sorted(session["runs"][method]["waits"]) == sorted(AT_THE_END + MORE.get(method, []))


@pytest.mark.parametrize("method", ["l2l", "semires"])
def test_a_run_is_used_there(session: dict[str, Any], method: str) -> None:
    used = session["runs"][method]["used"]
    assert used["num"] > 0 and used["labels"] > 0 and used["mask"] == [40, 60]


@pytest.mark.parametrize("kind", [*VISION_TOWERS, *TEXT_TOWERS])
def test_every_tower_passes_there_as_on_the_cpu(session: dict[str, Any], kind: str) -> None:
    passes = {pair: values for pair, values in session["passes"].items() if kind in pair.split()}
    assert passes and all(there == pytest.approx(here, rel=1e-4) for here, there in passes.values())
