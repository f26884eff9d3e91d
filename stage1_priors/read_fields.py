"""Which fields of its configuration a run reads: of those that rows depend on its fingerprint is made, and of no other.

So a field that only another kind of proposer or engine reads, or sampling alone, makes no other store when it is set,
and a new one leaves the stores of all others as they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stage1_priors.config import CandidatesConfig, ImportConfig, MllmConfig, PriorsConfig, ProposerConfig
from stage1_priors.proposers import PROPOSERS

ASKED = ("dtype", "max_tokens", "top_logprobs", "num_samples")
"""Fields of `MllmConfig` that every answer depends on; the model's files, the words and the limits on sizes, which the
model's own files complete, are parts of their own.
"""
PROPOSED = ("kind", "grid")
"""Fields of `ProposerConfig` that every kind reads; `PROPOSERS` says what each reads besides."""
CANDIDATES = (
    "num",
    "side",
    "prompts",
    "points_per_side",
    "min_iou",
    "min_stability",
    "stability_offset",
    "same_iou",
)
"""Fields of `CandidatesConfig` that candidates depend on, whatever prompts them."""
_OF_VLLM = ("image_cache_gb", "block_size", "eager", "one_process", "gpus", "kv_cache_gb", "gpu_memory")
"""Fields of `EngineConfig` that no other engine reads."""


def asked_fields(config: PriorsConfig) -> dict[str, Any]:
    """What an answer depends on, of the fields of `config.model`."""
    names = [*ASKED]
    if config.engine.kind == "vllm":
        names.append("max_model_len")
    if config.model.num_samples:
        names.append("sample_temperature")
    return {name: getattr(config.model, name) for name in names}


def proposing_fields(config: ProposerConfig) -> dict[str, Any]:
    """What a mask depends on, of the proposer's fields; its model's files are a part of their own."""
    names = [*PROPOSED, *PROPOSERS[config.kind].reads]
    found = {name: getattr(config, name) for name in names if name not in ("path", "revision", "candidates")}
    if "candidates" in names and config.candidates.num:
        found["candidates"] = _candidates_fields(config.candidates)
    return found


def _candidates_fields(config: CandidatesConfig) -> dict[str, Any]:
    names = (*CANDIDATES, "box_sides") if config.prompts == "boxes" else CANDIDATES
    return {name: getattr(config, name) for name in names}


def idle_fields(config: PriorsConfig | ImportConfig) -> Iterator[tuple[str, str]]:
    """Fields and whole groups that the run does not read, each with the reason."""
    if isinstance(config, ImportConfig):
        return
    yield from _of_model("model", config.model)
    if not config.model.num_samples:
        yield "model.sample_temperature", "model.num_samples is 0"
    if config.engine.kind == "vllm":
        yield "engine.batch_size", "engine.kind is vllm"
    else:
        for name in ("model.max_model_len", *(f"engine.{name}" for name in _OF_VLLM)):
            yield name, f"engine.kind is {config.engine.kind}"
    yield from _of_proposer(config.proposer)
    if config.canary.mode == "skip":
        for name in ("scenes", "scale", "min_mean_iou", "seed"):
            yield f"canary.{name}", "canary.mode is skip"
    if config.image_hash != "content":
        yield "reuse", f"image_hash is {config.image_hash}"


def _of_proposer(config: ProposerConfig) -> Iterator[tuple[str, str]]:
    own = PROPOSERS[config.kind]
    for name in sorted({name for kind in PROPOSERS.values() for name in (*kind.reads, *kind.speed)}):
        if name not in (*own.reads, *own.speed):
            yield f"proposer.{name}", f"proposer.kind is {config.kind}"
    if "path" in own.reads:
        yield from _of_model("proposer", config)
    if "candidates" not in own.reads:
        return
    group = "proposer.candidates"
    if not config.candidates.num:
        for name in (*CANDIDATES[1:], "box_sides"):
            yield f"{group}.{name}", f"{group}.num is 0"
    elif config.candidates.prompts != "boxes":
        yield f"{group}.box_sides", f"{group}.prompts is {config.candidates.prompts}"


def _of_model(group: str, config: MllmConfig | ProposerConfig) -> Iterator[tuple[str, str]]:
    if Path(config.path).is_dir():
        yield f"{group}.revision", f"{group}.path is a folder"
