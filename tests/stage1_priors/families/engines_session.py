"""One process with real engines for every family: `python -m ...families.engines_session OUT MODEL...`.

OUT gets JSON by name of the model folder. vLLM first, so that its environment variables are set before torch is
imported; one engine after the other.
"""

import dataclasses
import json
import sys
from pathlib import Path

from PIL import Image

from stage1_priors.answers import make_request
from stage1_priors.canary import SQUARE, draw_canary
from stage1_priors.config import CanaryConfig, EngineConfig, MllmConfig
from stage1_priors.engine import Request, generate_isolated
from stage1_priors.engines import ENGINES
from stage1_priors.families import family_of, size_rules_of
from stage1_priors.vllm_engine import VllmEngine

SHAPES_HW = ((128, 128), (96, 160), (150, 60), (40, 40), (300, 200))
"""Sizes of the original images."""
NUM_REQUESTS = 10
NUM_SAMPLES = 3
MAX_PIXELS = {"qwen3_vl": 128**2}
"""A lower limit than the model's own, by family: vLLM is told of it."""


def requests_of(folder: Path) -> list[Request]:
    """Questions about drawn scenes stretched to several shapes."""
    family = family_of(folder)
    rules = size_rules_of(family, folder, max_pixels=MAX_PIXELS.get(family.name))
    images, phrases, _ = draw_canary(CanaryConfig(scenes=NUM_REQUESTS), [SQUARE])
    shapes = [SHAPES_HW[index % len(SHAPES_HW)] for index in range(NUM_REQUESTS)]
    stretched = [image.resize(shape[::-1]) for image, shape in zip(images, shapes, strict=True)]
    return [
        make_request(image, phrase, family, rules, phrase)
        for image, phrase in zip(stretched, phrases, strict=True)
    ]


def most_image_tokens(engine: VllmEngine) -> int | None:
    """Tokens of the largest image that vLLM reserves memory for; None for families that it finds out by a trial."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    info = MULTIMODAL_REGISTRY.create_processor(engine._llm.model_config).info
    return (info.get_mm_max_tokens_per_item(512, {"image": 1}) or {}).get("image")


def main(out: Path, folders: list[Path]) -> None:
    """Ask both engines the same.

    Without caches, so that the prompts of the samples are more tokens than vLLM takes in one step. One request more has
    an image that is no fixed point of the processor, and the last one is asked again alone.
    """
    model = MllmConfig(
        path="unused", dtype="float32", max_model_len=512, max_tokens=24, num_samples=NUM_SAMPLES
    )
    engine_config = EngineConfig(eager=True, caching=False, kv_cache_gb=1, batch_size=4)
    result: dict = {}
    most_tokens: dict[str, int | None] = {}
    for kind in ("vllm", "transformers"):
        for folder in folders:
            asked = requests_of(folder)
            resized_again = dataclasses.replace(asked[0], image=Image.new("RGB", (70, 230)))
            family = family_of(folder)
            narrowed = dataclasses.replace(model, max_pixels=MAX_PIXELS.get(family.name))
            engine = ENGINES[kind](folder, family, narrowed, engine_config)
            if isinstance(engine, VllmEngine):
                most_tokens[folder.name] = most_image_tokens(engine)
            try:
                answers = generate_isolated(engine, [*asked, resized_again])
                answers += generate_isolated(engine, asked[-1:])
            finally:
                engine.close()
            result.setdefault(folder.name, {"sizes": [request.image.size for request in asked]})[kind] = [
                dataclasses.asdict(answer) for answer in answers
            ]
    out.write_text(json.dumps(result | {"most_tokens": most_tokens}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
