"""Recipes of stage 1: functions returning a `PriorsConfig` or an `ImportConfig`. `--set a.b=c` changes one field."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from shared.config import DataConfig
from stage1_priors.config import (
    CanaryConfig,
    CandidatesConfig,
    EngineConfig,
    ImportConfig,
    MllmConfig,
    PriorsConfig,
    ProposerConfig,
)

TINY_WEIGHTS = Path(__file__).parent / "tiny" / "weights"
"""Folder of the tiny Qwen2.5-VL that ships with the package."""
TINY_SAM_WEIGHTS = Path(__file__).parent / "tiny_sam" / "weights"
"""Folder of the tiny Sam2Model that ships with the package."""


def embedded() -> PriorsConfig:
    """The embedded data set, the tiny frozen Qwen2.5-VL through vLLM and the tiny Sam2Model, on a CPU.

    `priors run embedded`. Photographs go the same way: `--set data.root=... --set data.dataset=...`.
    """
    return PriorsConfig(
        data=DataConfig(root="cache/data/refshapes", dataset="refshapes"),
        model=MllmConfig(path=str(TINY_WEIGHTS), dtype="float32", max_model_len=256, max_tokens=24),
        splits=("train", "val", "testA", "testB"),
        engine=EngineConfig(
            chunk_rows=128, image_gb=0.5, image_cache_gb=1 / 32, block_size=32, eager=True, kv_cache_gb=1
        ),
        proposer=ProposerConfig(
            kind="sam2",
            path=str(TINY_SAM_WEIGHTS),
            grid=64,
            # The tiny Sam2Model knows boxes alone, and expects much the same of every mask.
            candidates=CandidatesConfig(prompts="boxes", points_per_side=8, min_iou=0.0, min_stability=0.0),
        ),
        canary=CanaryConfig(mode="refuse", scenes=16, min_mean_iou=0.4),
    )


def embedded_soft_box() -> PriorsConfig:
    """`embedded` without a second model: the mask is the box, soft where its edges are in doubt."""
    config = embedded()
    return replace(config, proposer=replace(config.proposer, kind="soft-box", path=""))


def refcoco_qwen25_vl_7b() -> PriorsConfig:
    """RefCOCO (unc), Qwen2.5-VL-7B-Instruct in bfloat16 through vLLM, and SAM 2.1 (Hiera-L), on one GPU.

    Needs `data/refer/refcoco/` with `refs(unc).p` and `instances.json`, the COCO train2014 images under
    `data/refer/images/`, and both models in the local Hugging Face cache. `priors run refcoco-qwen2.5-vl-7b`.
    """
    return PriorsConfig(
        data=DataConfig(root="data/refer", dataset="refcoco"),
        model=MllmConfig(
            path="Qwen/Qwen2.5-VL-7B-Instruct",
            dtype="bfloat16",
            max_model_len=4096,
            max_tokens=96,
        ),
        splits=("train", "val", "testA", "testB"),
        engine=EngineConfig(chunk_rows=512, eager=False, gpu_memory=0.85),
        proposer=ProposerConfig(kind="sam2", path="facebook/sam2.1-hiera-large", grid=128),
        canary=CanaryConfig(mode="refuse", scenes=16, scale=4, min_mean_iou=0.4),
    )


def import_masks() -> ImportConfig:
    """Soft masks of RefCOCO (unc) made elsewhere, by CARIS for instance, without any model.

    `priors run import --set source=FOLDER_OR_ZARR`; the embedded data go the same way with `--set
    data.root=cache/data/refshapes --set data.dataset=refshapes`.
    """
    return ImportConfig(
        data=DataConfig(root="data/refer", dataset="refcoco"),
        source="data/masks",
        splits=("train", "val", "testA", "testB"),
        grid=128,
    )


RECIPES: dict[str, Callable[[], PriorsConfig | ImportConfig]] = {
    "embedded": embedded,
    "embedded-soft-box": embedded_soft_box,
    "refcoco-qwen2.5-vl-7b": refcoco_qwen25_vl_7b,
    "import": import_masks,
}
"""Recipe by the name the command line takes."""
