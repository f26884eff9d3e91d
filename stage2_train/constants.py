"""Numbers of the configuration where the device can compute with them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def constant(values: float | Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor of `like`'s dtype and on its device.

    They are sent without waiting; `like.new_tensor` waits until the device has computed all that was queued before.

    Args:
        values: A number, or several.
        like: Any tensor of the wanted dtype and device.

    Returns:
        A tensor without axes, or with one.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
