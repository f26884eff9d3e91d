"""Engines by name; importing them loads neither torch nor vLLM."""

from stage1_priors.engine import EngineFactory
from stage1_priors.transformers_engine import TransformersEngine
from stage1_priors.vllm_engine import VllmEngine

ENGINES: dict[str, EngineFactory] = {"vllm": VllmEngine, "transformers": TransformersEngine}
"""Engine by `engine.kind`."""
