"""Recipes of stage 1: functions returning a `PriorsConfig`. `--set a.b=c` changes single fields."""

from collections.abc import Callable
from pathlib import Path

from shared.config import DataConfig
from stage1_priors.config import CanaryConfig, EngineConfig, MllmConfig, PriorsConfig, ProposerConfig

TINY_WEIGHTS = Path(__file__).parent / "tiny" / "weights"
"""Folder of the tiny Qwen2.5-VL that ships with the package."""


def embedded() -> PriorsConfig:
    """The embedded data set and the tiny frozen Qwen2.5-VL through vLLM on a CPU.

    `priors embedded`. Photographs go the same way: `--set data.root=... --set data.dataset=...`.
    """
    return PriorsConfig(
        data=DataConfig(root="cache/data/refshapes", dataset="refshapes"),
        model=MllmConfig(path=str(TINY_WEIGHTS), dtype="float32", max_model_len=256, max_tokens=24),
        splits=("train", "val", "testA", "testB"),
        engine=EngineConfig(chunk_rows=128, eager=True, kv_cache_gb=1),
        proposer=ProposerConfig(grid=64),
        canary=CanaryConfig(mode="refuse", scenes=16, min_mean_iou=0.4),
    )


def refcoco_qwen25_vl_7b() -> PriorsConfig:
    """RefCOCO (unc) and Qwen2.5-VL-7B-Instruct in bfloat16 through vLLM on one GPU.

    Needs `data/refer/refcoco/` with `refs(unc).p` and `instances.json`, the COCO train2014 images under
    `data/refer/images/`, and the model in the local Hugging Face cache. `priors refcoco-qwen2.5-vl-7b`.
    """
    return PriorsConfig(
        data=DataConfig(root="data/refer", dataset="refcoco"),
        model=MllmConfig(
            path="Qwen/Qwen2.5-VL-7B-Instruct",
            dtype="bfloat16",
            max_model_len=4096,
            max_tokens=96,
            max_pixels=1280 * 28 * 28,
        ),
        splits=("train", "val", "testA", "testB"),
        engine=EngineConfig(chunk_rows=512, eager=False),
        proposer=ProposerConfig(grid=128),
        canary=CanaryConfig(mode="refuse", scenes=16, scale=4, min_mean_iou=0.4),
    )


RECIPES: dict[str, Callable[[], PriorsConfig]] = {
    "embedded": embedded,
    "refcoco-qwen2.5-vl-7b": refcoco_qwen25_vl_7b,
}
"""Recipe by the name the command line takes."""
