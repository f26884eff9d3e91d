"""A store over drawn images: 60 pairs, hostile words, answers with and without a box."""

import json

import numpy as np
import pytest
from PIL import Image

from shared.config import DataConfig
from shared.seeding import rng
from stage1_priors.config import CanaryConfig, EngineConfig, MllmConfig, PriorsConfig, ProposerConfig
from stage1_priors.engine import Answer
from stage1_priors.inspect.view import open_view
from stage1_priors.run import run_priors
from tests.stage1_priors.fake_engine import FakeEngine, random_box_answer, write_model_folder
from tests.stage1_priors.inspect.hostile import HOSTILE, LONG, PROSE


def answer(request):
    """A box for most; prose where the words speak of something green."""
    if "green" in request.expression:
        return Answer(text=PROSE, num_tokens=5, finish_reason="stop")
    return random_box_answer(request)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Pair 0 is hostile, pair 7 long; every tenth is green and has no prior: 6 of 60."""
    root = tmp_path_factory.mktemp("inspected")
    for number in range(3):
        pixels = rng("inspected", number).integers(0, 255, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    lines = []
    for number in range(60):
        usual = f"the green one {number}" if number % 10 == 5 else f"Thing {number}"
        words = {0: HOSTILE, 7: LONG}.get(number, usual)
        split = "train" if number < 45 else "val"
        lines.append(json.dumps({"image": f"{number % 3}.png", "expression": words, "split": split}))
    (root / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    config = PriorsConfig(
        data=DataConfig(root=str(root / "pairs.jsonl"), dataset="pairs"),
        model=MllmConfig(path=str(write_model_folder(root / "model")), dtype="float32"),
        splits=("train", "val"),
        engine=EngineConfig(chunk_rows=100),
        proposer=ProposerConfig(grid=16),
        canary=CanaryConfig(mode="skip"),
        cache_root=str(root / "cache"),
    )
    return run_priors(config, engine_factory=FakeEngine(answer).factory, quiet=True)


@pytest.fixture(scope="session")
def view(store):
    return open_view(store)
