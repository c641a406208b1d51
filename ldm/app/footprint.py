"""What a computation would cost, found by running it on the meta device: nothing is computed and nothing allocated."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# What autocast computes in half precision, and what it takes back to float32, on a GPU: torch's own lists, as far as our networks go.
HALVED = ("linear", "conv2d", "scaled_dot_product_attention")
WIDENED = ("group_norm", "layer_norm")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """
    Attributes:
        flops: floating-point operations, a multiplication with its addition counted as two.
        bytes: the most that was alive at one time of what the computation made.
    """

    flops: int
    bytes: int

    def extended(self, other: Footprint, pictures: int) -> Footprint:
        """For so many pictures, where this is of one and `other` of two: both costs grow by the same for each."""
        more = pictures - 1
        return Footprint(flops=self.flops + more * (other.flops - self.flops), bytes=self.bytes + more * max(0, other.bytes - self.bytes))


def measure(compute: Callable[[], Tensor], half: torch.dtype | None) -> Footprint:
    """Of a computation on the meta device.

    Args:
        compute: gives what is to be known.
        half: what autocast would use; None = it is off.
    """
    meter = _Meter()
    with meter, _as_on_gpu(half):
        compute()
    return Footprint(flops=meter.flops, bytes=meter.most)


def training_footprint(parts: list[nn.Module], loss: Callable[[], Tensor], half: torch.dtype | None) -> Footprint:
    """Of forward and backward pass; gradients of the parts' weights are not in it, as they outlive the pass.

    Args:
        parts: on the meta device.
        loss: a scalar.
        half: see `measure`.
    """
    for part in parts:
        for parameter in part.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def step() -> Tensor:
        value = loss()
        value.backward()
        return value

    return measure(step, half)


class _Meter(TorchDispatchMode):
    """Sums the operations of what passes, and follows the life of every tensor that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.now = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):
                self._known.add(given.untyped_storage())  # made before, if it is not known yet; what is written into stays what it was
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, count: int) -> None:
        self.now -= count


@contextmanager
def _as_on_gpu(half: torch.dtype | None) -> Iterator[None]:
    """Lets the meta device do what a GPU does: fused attention, which never holds all scores, and autocast.

    Exchanges functions of torch.nn.functional while it lasts: a TorchFunctionMode would not reach what checkpointing recomputes in the
    backward pass. So nothing else may run meanwhile.
    """
    copies: dict[int, Tensor] = {}  # autocast casts a weight once

    def cast(value: Any, dtype: torch.dtype | None) -> Any:
        if dtype is None or not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        if id(value) not in copies:
            copies[id(value)] = value.to(dtype)
        return copies[id(value)]

    def within(function: Callable[..., Tensor], dtype: torch.dtype | None) -> Callable[..., Tensor]:
        return lambda *values, **named: function(*(cast(v, dtype) for v in values), **{k: cast(v, dtype) for k, v in named.items()})

    wide = None if half is None else torch.float32
    theirs = {name: getattr(F, name) for name in (*HALVED, *WIDENED)}
    ours = {name: within(theirs[name], half) for name in HALVED} | {name: within(theirs[name], wide) for name in WIDENED}
    ours["scaled_dot_product_attention"] = within(_fused, half)
    try:
        for name, function in ours.items():
            setattr(F, name, function)
        yield
    finally:
        for name, function in theirs.items():
            setattr(F, name, function)


def _fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    bias = None if attn_mask is None else torch.zeros(attn_mask.shape, dtype=q.dtype, device=q.device)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)[0]
