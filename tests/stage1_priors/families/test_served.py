"""A random model of each family under real vLLM and under Transformers, in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stage1_priors.families import family_of, image_token_id_of, size_rules_of
from tests.stage1_priors.families.engines_session import MAX_PIXELS, NUM_REQUESTS, NUM_SAMPLES
from tests.stage1_priors.families.random_models import FAMILIES, save_random_family

REPOSITORY = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder per family."""
    root = tmp_path_factory.mktemp("families")
    return {name: save_random_family(name, root / name) for name in FAMILIES}


@pytest.fixture(scope="module")
def session(folders):
    """Answers of both engines, by family."""
    out = next(iter(folders.values())).parent / "result.json"
    command = [sys.executable, "-m", "tests.stage1_priors.families.engines_session", str(out)]
    done = subprocess.run(
        [*command, *map(str, folders.values())], cwd=REPOSITORY, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_folder_names_its_family(name, folders):
    family = family_of(folders[name])
    rules = size_rules_of(family, folders[name])
    assert family.name == name and rules.min_pixels < rules.max_pixels
    assert image_token_id_of(folders[name]) > 255


@pytest.mark.parametrize("name", FAMILIES)
def test_vllm_serves_the_family(name, session):
    """Every answer is whole, and the images matter: answers to one phrase after another are not all alike."""
    answers = session[name]["vllm"][:NUM_REQUESTS]
    for answer in answers:
        assert answer["error"] is None and answer["num_tokens"] == len(answer["tokens"]) > 0
        assert answer["finish_reason"] in ("stop", "length")
    assert len({answer["text"] for answer in answers}) > NUM_REQUESTS // 2
    assert len({tuple(size) for size in session[name]["sizes"]}) > 1


def test_vllm_reserves_memory_for_images_as_large_as_are_asked_about(folders, session):
    """16 cells of 32 pixels a side are 128 x 128; the model's own limit is 160 x 160."""
    assert session["most_tokens"]["qwen3_vl"] == 16 == MAX_PIXELS["qwen3_vl"] // 32**2
    own = size_rules_of(family_of(folders["qwen3_vl"]), folders["qwen3_vl"])
    assert own.max_pixels // 32**2 == 25


@pytest.mark.parametrize("name", FAMILIES)
def test_vllm_equals_transformers_in_float32(name, session):
    """Greedy texts are equal, log-probabilities to float32 rounding through a few layers.

    One of ten may differ: random weights can put two tokens next to each other.
    """
    served, reference = session[name]["vllm"][:NUM_REQUESTS], session[name]["transformers"][:NUM_REQUESTS]
    same = [one["text"] == other["text"] for one, other in zip(served, reference, strict=True)]
    assert sum(same) >= NUM_REQUESTS - 1
    for one, other in zip(served, reference, strict=True):
        if one["text"] == other["text"]:
            np.testing.assert_allclose(
                [token["logprob"] for token in one["tokens"]],
                [token["logprob"] for token in other["tokens"]],
                atol=1e-3,
            )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_an_image_that_would_be_resized_again_fails_alone(name, engine, session):
    assert "the engine resized it again" in session[name][engine][NUM_REQUESTS]["error"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_samples_differ_and_do_not_depend_on_the_batch(name, engine, session):
    answers = session[name][engine]
    asked, alone = answers[:NUM_REQUESTS], answers[NUM_REQUESTS + 1]
    assert {len(answer["samples"]) for answer in asked} == {NUM_SAMPLES}
    assert sum(len({text for text, _ in answer["samples"]}) > 1 for answer in asked) > NUM_REQUESTS // 2
    assert alone["samples"] == asked[-1]["samples"]
