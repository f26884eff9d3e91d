"""Mask proposers and the Transformers engine on a device that is not the CPU: nothing stays behind."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    out = tmp_path_factory.mktemp("other-device")
    command = [sys.executable, "-m", "tests.stage1_priors.other_device_session", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("kind", ["sam2", "sam"])
def test_masks_are_made_there_as_on_the_cpu(session, kind):
    (here, maps, iou), (there, other_maps, other_iou) = (found[kind] for found in session)
    assert (here, there) == ("cpu", "other:0")
    assert np.abs(np.subtract(maps, other_maps)).max() <= 1
    np.testing.assert_allclose(other_iou, iou, atol=1e-4)


def test_questions_are_answered_there_as_on_the_cpu(session):
    (here, replies, known), (there, other_replies, other_known) = (found["engine"] for found in session)
    assert (here, there) == ("cpu", "other:0")
    assert other_replies == replies and all(error is None for error, *_ in replies)
    for values, other_values in zip(known, other_known, strict=True):
        np.testing.assert_allclose(other_values, values, atol=1e-4)
