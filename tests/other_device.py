"""A device that is not the CPU, for machines that have nothing else: whether code minds where its tensors lie.

`torch.device("other:0")` is registered with PyTorch as a device of its own, for the rest of the process, which should
do nothing else. Its tensors compute on the CPU, and as on a GPU

- an operation between a tensor of it and one of the CPU is refused (numbers without axes excepted);
- `numpy()` and `np.asarray` are refused.

`waits` records where Python waits for the device: values that are read (`item`, `tolist`, `nonzero`, flags as an
index), and copies in either direction but those to the device that are marked `non_blocking`. On a GPU each of them
stops the host until everything queued before has been computed.

    with OtherDevice():
        model.to(DEVICE)(x.to(DEVICE, non_blocking=True))

Tensors of `torch.inference_mode` cannot stand for others; `torch.no_grad` must take its place.
"""

import sys
from types import FrameType
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode


class _Module(backend_registration._DummyBackendModule):
    """What autocast asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Any that it may be told to cast to; nothing is cast."""
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend("other", backend_module=_Module())
DEVICE = torch.device("other:0")
_kernels = torch.library.Library("aten", "IMPL")
# `torch.tensor` of a list that holds tensors reads them past every dispatch mode.
_kernels.impl("_local_scalar_dense", lambda tensor: tensor.held.item(), "PrivateUse1")
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")
"""Operations whose result Python needs the values for."""

waits: list[tuple[str, list[str]]] = []
"""What was waited for, and the names of this project's functions that were being run, innermost first."""


class OtherTensor(torch.Tensor):
    """A tensor of the device; `held` is that of the CPU which it stands for."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OtherTensor":
        """Of the same shape."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute."""
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """Values, waited for."""
        _note("tolist")
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused."""
        raise TypeError(f"can't convert {DEVICE} tensor to numpy")

    def __array__(self, *args: Any) -> Any:
        """Refused."""
        return self.numpy()

    def __repr__(self, **_: Any) -> str:
        """The values."""
        return f"other({self.held!r})"


class OtherDevice(TorchDispatchMode):
    """Makes tensors on the device where one is asked for."""

    def __enter__(self) -> Any:
        """Let `torch.tensor(..., device=...)` come by here, as a copy from the CPU."""
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Undo."""
        torch._C._set_only_lift_cpu_tensors(self._before)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute."""
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    others = [tensor for tensor in tensors if isinstance(tensor, OtherTensor)]
    name = func._schema.name.removeprefix("aten::")
    ours, copies = bool(others), name in ("_to_copy", "to")
    if name == "copy_":
        ours = isinstance(args[0], OtherTensor)
    elif others and not copies and name != "index":  # numbers of the CPU may be an index
        alien = [t for t in tensors if not isinstance(t, OtherTensor) and t.ndim]
        if alien:
            raise RuntimeError(
                f"{func}: tensors of the CPU and of {DEVICE}, shapes {[tuple(t.shape) for t in tensors]}"
            )
    for device in (leaf for leaf in leaves if isinstance(leaf, torch.device)):
        ours = device.type == DEVICE.type
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    if others and (name in READS or _looks_at_flags(name, args)):
        _note(name)
    if copies and ours != bool(others) and (others or not kwargs.get("non_blocking")):
        _note("copy to the device" if ours else "copy from the device")
    plain_args, plain_kwargs = pytree.tree_map_only(OtherTensor, lambda t: t.held, (args, kwargs))
    plain_args, plain_kwargs = pytree.tree_map_only(
        torch.device, lambda _: torch.device("cpu"), (plain_args, plain_kwargs)
    )
    result = func(*plain_args, **plain_kwargs)
    if not ours:
        return result
    # An operation in place gives its very argument back.
    by_held = {id(other.held): other for other in others}

    def on_device(tensor: torch.Tensor) -> torch.Tensor:
        found = by_held.get(id(tensor))
        return OtherTensor(tensor) if found is None else found

    return pytree.tree_map_only(torch.Tensor, on_device, result)


def _looks_at_flags(name: str, args: Any) -> bool:
    """Whether flags are an index; where a single number is written, it goes where they are without a look."""
    if not name.startswith("index") or not isinstance(args[1], list | tuple):
        return False
    flags = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in args[1])
    return flags and not (name.startswith("index_put") and args[2].numel() == 1)


def _note(what: str) -> None:
    names: list[str] = []
    here: FrameType | None = sys._getframe(1)
    while here is not None:
        if "/site-packages/" not in here.f_code.co_filename and here.f_code.co_filename != __file__:
            names.append(here.f_code.co_name)
        here = here.f_back
    waits.append((what, names))
