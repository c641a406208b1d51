"""A device that no machine needs to have: tensors that say they lie on an Apple GPU, while their numbers are in the CPU's memory.

Within `Elsewhere()`, `x.to(DEVICE)` and `torch.zeros(2, device=DEVICE)` give such tensors (`There`), and all computation works on them,
forwards and backwards, as it does on the CPU. What fails on an Apple GPU fails here: tensors of two devices in one operation (a number of
a CPU, with no dimension, may join), float64, a CPU's generator, NumPy.

A tensor that lies about its device to torch's own core ends the process (`cuda`, `mps`), or our code takes it for one without numbers
(`meta`). So only Python is told of the device, by what torch documents for that in "Extending PyTorch": a subclass, and a mode over all
functions. What a backward pass mixes is therefore not seen; every forward pass is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DEVICE, PLACE, CPU = torch.device("mps"), torch.device("mps:0"), torch.device("cpu")  # asked for, and what a tensor there says of itself
NEED_ONE_DEVICE = ("cat", "concat", "stack", "linear", "conv2d", "embedding")  # which take no number of a CPU either
BETWEEN = ("_has_compatible_shallow_copy_type",)  # a question that `Module.to` asks of tensors on two devices


class There(Tensor):
    """A tensor on that device."""


class Elsewhere(TorchFunctionMode):
    """While it is open, DEVICE is there."""

    def __enter__(self) -> Elsewhere:
        self.before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # `module.to(DEVICE)` makes its parameters There
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(self.before)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        special = SPECIAL.get(func)
        if special is not None:
            return special(*args, **kwargs)
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == DEVICE.type
            if there:
                _refuse_generator(kwargs)
            made = func(*args, **kwargs | ({"device": CPU} if there else {}))
            return _placed(made, there)
        name = getattr(func, "__name__", str(func))
        tensors = list(_tensors((args, kwargs)))
        if name not in BETWEEN and any(isinstance(tensor, There) for tensor in tensors):
            _refuse_generator(kwargs)
            _refuse_mixture(name, tensors)
        found = func(*args, **kwargs)
        for tensor in _tensors(found):
            if isinstance(tensor, There):
                _refuse_float64(tensor)
        return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _refuse_mixture(name: str, tensors: list[Tensor]) -> None:
    strangers = [tensor for tensor in tensors if not isinstance(tensor, There)]
    changes_a_number = name.endswith("_") and not name.endswith("__") and not isinstance(tensors[0], There)
    if any(stranger.ndim for stranger in strangers) or (strangers and (name in NEED_ONE_DEVICE or changes_a_number)):
        shapes = ", ".join(f"{tuple(tensor.shape)} on {DEVICE if isinstance(tensor, There) else CPU}" for tensor in tensors)
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, got {shapes}")


def _refuse_generator(kwargs: dict[str, Any]) -> None:
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"expected a generator of {DEVICE}, got one of {kwargs['generator'].device}")


def _refuse_float64(tensor: Tensor) -> None:
    if tensor.dtype in (torch.float64, torch.complex128):
        raise TypeError(f"cannot make a tensor of {tensor.dtype} on {DEVICE}, which has no float64")


def _placed(tensor: Tensor, there: bool) -> Tensor:
    if not there:
        return tensor.as_subclass(Tensor) if isinstance(tensor, There) else tensor
    _refuse_float64(tensor)
    return tensor if isinstance(tensor, There) else tensor.as_subclass(There)


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to` in all its forms."""
    given = [*args, *(kwargs.pop(name, None) for name in ("device", "dtype", "other"))]
    there, dtype = isinstance(tensor, There), None
    for each in given:
        if isinstance(each, Tensor):
            there, dtype = isinstance(each, There), each.dtype
        elif isinstance(each, torch.device | str):
            there = torch.device(each).type == DEVICE.type
        elif isinstance(each, torch.dtype):
            dtype = each
    kwargs = {"copy": kwargs.get("copy", False) or there != isinstance(tensor, There), "memory_format": kwargs.get("memory_format")}
    moved = tensor.to(dtype or tensor.dtype, **{name: value for name, value in kwargs.items() if value is not None})
    return _placed(moved, there)


def _copied_into(tensor: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    tensor.as_subclass(Tensor).copy_(source.as_subclass(Tensor))
    return tensor


def _item(tensor: Tensor, index: Any) -> Any:
    """Only the index may be of the CPU, as with CUDA."""
    if not isinstance(tensor, There) and any(isinstance(part, There) for part in _tensors(index)):
        raise RuntimeError(f"indices should be on the CPU, as the indexed tensor is, got one on {DEVICE}")
    plain = index if isinstance(index, tuple) else (index,)
    return _placed(
        tensor[tuple(part.as_subclass(Tensor) if isinstance(part, There) else part for part in plain)], isinstance(tensor, There)
    )


def _deep_copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    copied = _placed(tensor.detach().clone(), isinstance(tensor, There)).requires_grad_(tensor.requires_grad)
    memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    return memo[id(tensor)]


def _numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    if isinstance(tensor, There):
        raise TypeError(f"cannot convert a tensor on {DEVICE} to NumPy: use Tensor.cpu() first")
    return tensor.numpy(*args, **kwargs)


def _reduced(tensor: Tensor, protocol: Any) -> Any:
    """What `torch.save` writes: the numbers."""
    return _placed(tensor, False).__reduce_ex__(protocol)


def _grad(tensor: Tensor) -> Tensor | None:
    grad = tensor.grad
    return None if grad is None else _placed(grad, isinstance(tensor, There))


SPECIAL: dict[Any, Callable[..., Any]] = {
    Tensor.device.__get__: lambda tensor, *_: PLACE if isinstance(tensor, There) else tensor.device,
    Tensor.is_cpu.__get__: lambda tensor, *_: not isinstance(tensor, There) and tensor.is_cpu,
    Tensor.is_mps.__get__: lambda tensor, *_: isinstance(tensor, There),
    Tensor.grad.__get__: lambda tensor, *_: _grad(tensor),
    Tensor.to: _to,
    Tensor.cpu: lambda tensor, *_: _to(tensor, CPU),
    Tensor.copy_: _copied_into,
    Tensor.__getitem__: _item,
    Tensor.__deepcopy__: _deep_copy,
    Tensor.__reduce_ex__: _reduced,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
}
