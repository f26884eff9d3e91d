"""One process with real engines: `python -m tests.stage1_priors.vllm_session MODEL DATA OUT` writes OUT/result.json.

vLLM first, so that its environment variables are set before torch is imported.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

from PIL import Image

from shared.config import DataConfig, apply_overrides
from shared.refer import load_refer
from stage1_priors.answers import make_request
from stage1_priors.config import CanaryConfig, EngineConfig, MllmConfig, PriorsConfig, ProposerConfig
from stage1_priors.engine import Request, generate_isolated
from stage1_priors.engines import ENGINES
from stage1_priors.families import family_of, size_rules_of
from stage1_priors.run import run_priors
from stage1_priors.vllm_engine import VllmEngine

NUM_REQUESTS = 24
NUM_SAMPLES = 3
"""Boxes sampled for each row of the store."""
IMAGE_CACHE_GB = 2**-12
"""A quarter of a MiB: fewer images than are asked about, so that some are forgotten on the way."""
BLOCK = 32
"""Tokens of a block of the prefix cache, which finds whole blocks alone."""
COMMON = "of all the things in this picture: "
"""Begins every expression, so that two of one image share a block: template and small image take 28 tokens."""
FAULTS = {
    "too long with its image": "red " * 220,
    "too long": "red " * 400,
    "the marker of an image": "thing <|vision_start|><|image_pad|><|vision_end|>",
}
"""Expressions that the model cannot be asked about, each before any other question about its image. The first is short
enough to be taken for a prompt until the tokens of its image stand in it."""


def with_faults(requests: list[Request]) -> list[Request]:
    """Each fault right before the first question about an image of its own."""
    seen: set[bytes] = set()
    faults, mixed = iter(FAULTS.values()), []
    for request in requests:
        pixels = request.image.tobytes()
        if pixels not in seen and (fault := next(faults, None)):
            mixed.append(dataclasses.replace(request, expression=fault))
        seen.add(pixels)
        mixed.append(request)
    return mixed


def with_penalty(model_folder: Path, copy: Path) -> Path:
    """The model as it might be published: its files ask for a penalty on repeated tokens, as Qwen's own do."""
    shutil.copytree(model_folder, copy)
    file = copy / "generation_config.json"
    wishes = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(wishes | {"repetition_penalty": 1.5}))
    return copy


def main(model_folder: Path, data_root: Path, out: Path) -> None:
    """Ask the same questions in three ways, provoke failures, and write a store."""
    model_folder = with_penalty(model_folder, out / "published")
    model = MllmConfig(path=str(model_folder), dtype="float32", max_model_len=256, max_tokens=24)
    base = EngineConfig(
        kind="vllm",
        eager=True,
        block_size=BLOCK,
        image_cache_gb=IMAGE_CACHE_GB,
        kv_cache_gb=1,
        chunk_rows=50,
        batch_size=5,
    )
    family = family_of(model_folder)
    rules = size_rules_of(family, model_folder)
    dataset = load_refer(data_root, "refshapes", "unc")
    samples = dataset.samples("val")[:NUM_REQUESTS]
    requests = [
        make_request(dataset.image(sample), COMMON + sample.expression, family, rules) for sample in samples
    ]
    resized_again = dataclasses.replace(requests[0], image=Image.new("RGB", (84, 112)), num_image_tokens=12)
    result: dict = {}

    def answers(kind: str, engine_config: EngineConfig, asked: list[Request]) -> list[dict]:
        engine = ENGINES[kind](model_folder, family, model, engine_config)
        try:
            once = [dataclasses.asdict(answer) for answer in generate_isolated(engine, requests)]
            result[f"cache hits of {kind}, caching {engine_config.caching}"] = engine.cache_hits()
            given = [dataclasses.asdict(answer) for answer in generate_isolated(engine, asked)]
            assert asked is not requests or [one["text"] for one in once] == [one["text"] for one in given]
            if isinstance(engine, VllmEngine) and engine_config.caching:
                core = engine._llm.llm_engine.engine_core.engine_core
                caches = (engine._llm.renderer.mm_processor_cache, core.mm_receiver_cache)
                result["image caches"] = [[one._cache.currsize, len(one._cache)] for one in caches]
                core.mm_receiver_cache.clear_cache()
                again = [dataclasses.asdict(answer) for answer in generate_isolated(engine, requests)]
                result["vllm, its core without images"] = again
                result["unfinished"] = engine._llm.llm_engine.has_unfinished_requests()
            return given
        finally:
            engine.close()

    mixed = [*with_faults(requests), resized_again]
    result["asked"] = [request.expression for request in mixed]
    result["vllm"] = answers("vllm", base, mixed)
    result["images"] = len({sample.file_name for sample in samples})
    result["vllm, no caches"] = answers("vllm", dataclasses.replace(base, caching=False), requests)
    result["transformers"] = answers("transformers", base, requests)
    config = PriorsConfig(
        data=DataConfig(root=str(data_root), dataset="refshapes"),
        model=dataclasses.replace(model, num_samples=NUM_SAMPLES),
        splits=("val", "testA"),
        engine=base,
        proposer=ProposerConfig(grid=32),
        canary=CanaryConfig(mode="warn"),
        cache_root=str(out / "cache"),
        answer_failure_ceiling=1.0,
    )
    result["store"] = str(run_priors(config, quiet=True))
    result["store of transformers"] = str(
        run_priors(apply_overrides(config, ["engine.kind=transformers"]), quiet=True)
    )
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
