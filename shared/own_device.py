"""Where a process that works alone computes. Imports torch only when asked."""

from typing import Any


def own_device() -> Any:
    """`torch.device`: the GPU, if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
