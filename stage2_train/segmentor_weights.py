"""Weights of a segmentor in a file: written whole, loaded by parts; what does not fit is refused by its header."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from shared.errors import DataError
from stage2_train.segmentor_config import PARTS
from stage2_train.tensor_files import read_shapes, read_tensors


def load_pretrained(model: nn.Module, path: Path, parts: tuple[str, ...] = PARTS[:3]) -> None:
    """Load the named parts of a file written by `save_segmentor`; other parts keep their values.

    Args:
        model: Changed in place.
        path: A `.safetensors` file; any floating type.
        parts: Names out of `segmentor_config.PARTS`.

    Raises:
        DataError: No such file, a damaged one, or a part of it that lacks a tensor or has one of another shape.
    """
    require_weights(model, path, parts)
    load_parts(model, path, parts)


def load_parts(model: nn.Module, path: Path, parts: tuple[str, ...]) -> None:
    """Load the named parts of a file that `require_weights` has let pass; other parts keep their values."""
    prefixes = tuple(f"{part}." for part in parts)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}
    found = read_tensors(path)
    model.load_state_dict({name: found[name].to(value.dtype) for name, value in own.items()}, strict=False)


def require_weights(
    model: nn.Module, path: Path, parts: tuple[str, ...], *, may_leave_out: bool = False
) -> None:
    """Refuse a file that lacks a tensor of these parts or has one of another shape; its header alone is read.

    Args:
        model: The network, on any device.
        path: A `.safetensors` file.
        parts: Names out of `segmentor_config.PARTS`.
        may_leave_out: The parts are `weight_parts`: the message says which of them can stay.

    Raises:
        DataError: No such file, a damaged one, or one that does not fit.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such weights file")
    shapes = read_shapes(path)
    faults: dict[str, str] = {}
    for name, value in model.state_dict().items():
        part = name.partition(".")[0]
        if part not in parts or shapes.get(name) == tuple(value.shape):
            continue
        shape = f"{name} has shape {shapes.get(name)}, the model has {tuple(value.shape)}"
        faults.setdefault(part, shape if name in shapes else f"tensor {name} is missing")
    if not faults:
        return
    remedy = ""
    if may_leave_out:
        fitting = ",".join(part for part in parts if part not in faults)
        change = f"segmentor.weight_parts={fitting}" if fitting else "segmentor.weights=none"
        remedy = f"; to start without what does not fit ({', '.join(faults)}): --set {change}"
    raise DataError(f"{path}: {next(iter(faults.values()))}{remedy}")


def save_segmentor(model: nn.Module, path: Path, dtype: torch.dtype | None = None) -> None:
    """Write every tensor of the state dict as safetensors, floating ones in `dtype` if given."""
    state = {
        name: value.detach()
        .to(dtype if dtype is not None and value.is_floating_point() else value.dtype)
        .contiguous()
        .cpu()
        for name, value in model.state_dict().items()
    }
    save_file(state, path)
