"""Parameter counts by part, on the meta device: no weights are allocated or read."""

from collections.abc import Mapping

import torch
from torch import nn

from stage2_train.rple.policy import Actor, Critic, PolicyConfig
from stage2_train.segmentor import ReferringSegmentor
from stage2_train.segmentor_config import PARTS, SegmentorConfig, without_pretrained


def num_parameters(module: nn.Module | None) -> int:
    """Trainable parameters of a module (0 for None)."""
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_parameters(config: SegmentorConfig) -> dict[str, int]:
    """Count trainable parameters.

    Args:
        config: The segmentor; its weight paths are ignored.

    Returns:
        Counts under each of `PARTS`, their sum `segmentor`, and the labelling policy's `actor` and `critic`, which are
        gone at inference.
    """
    with torch.device("meta"):
        model = ReferringSegmentor(without_pretrained(config))
        actor, critic = Actor(PolicyConfig()), Critic()
    parts = {name: num_parameters(getattr(model, name)) for name in PARTS}
    return {
        **parts,
        "segmentor": num_parameters(model),
        "actor": num_parameters(actor),
        "critic": num_parameters(critic),
    }


def text_of_counts(counts: Mapping[str, int]) -> str:
    """A line per part."""
    return "\n".join(f"{name:<10} {number:>13,}" for name, number in counts.items())
