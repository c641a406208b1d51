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
from torch.utils.flop_counter import FlopCounterMode

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
        compute: gives what is to be known; called twice, for the bytes and for the operations.
        half: what autocast would use; None = it is off.
    """
    alive, flops, attention = _Alive(), FlopCounterMode(display=False), _FusedAttention()
    with alive, _as_on_gpu(half, _FusedAttention()):
        compute()
    with flops, _as_on_gpu(half, attention):  # a run of its own: FlopCounterMode's hooks keep tensors alive
        compute()
    return Footprint(flops=flops.get_total_flops() + attention.flops, bytes=alive.most)


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


class _Alive(TorchDispatchMode):
    """Follows the life of every tensor that is made while it is entered.

    TorchDispatchMode lies in a private module of torch, which documents it for this; nothing public sees what the backward pass makes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.now = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in _tensors((args, kwargs)):
            self._known.add(given.untyped_storage())  # made before, if it is not known yet; what is written into stays what it was
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
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


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list | dict):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


class _FusedAttention:
    """Attention as a fused kernel leaves it on the meta device: its result and one number a query are kept, never the scores.

    Attributes:
        flops: of all calls so far: two matrix products forward, five backward, as the scores are computed again (Dao et al. 2022, alg. 4).
    """

    def __init__(self) -> None:
        self.flops = 0
        meter = self

        class Attend(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                meter.count(2, q, k)
                ctx.save_for_backward(q, k, v, torch.empty(q.shape[:-1], device=q.device))
                return torch.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype, device=q.device)

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
                q, k, v, _ = ctx.saved_tensors
                meter.count(5, q, k)
                return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

        self._attend = Attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        out: Tensor = self._attend.apply(q, k, v)
        return out

    def count(self, products: int, q: Tensor, k: Tensor) -> None:
        self.flops += products * 2 * q.numel() * k.shape[-2]


@contextmanager
def _as_on_gpu(half: torch.dtype | None, attention: _FusedAttention) -> Iterator[None]:
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
    ours["scaled_dot_product_attention"] = within(attention, half)
    try:
        for name, function in ours.items():
            setattr(F, name, function)
        yield
    finally:
        for name, function in theirs.items():
            setattr(F, name, function)
