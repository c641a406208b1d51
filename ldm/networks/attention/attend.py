"""Attention under one signature, whatever computes it. B batch, N heads, L queries, S keys, D width of a head."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ldm.core.errors import UserError, unknown
from ldm.networks.attention import fused, reference

Compute = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
_COMPUTE: dict[str, Compute] = {
    "math": reference.math,
    "sdpa": fused.sdpa,
    "xformers": fused.xformers,
}
BACKENDS = ("auto", *_COMPUTE)
_found: dict[Hashable, bool] = {}  # whether a kernel runs, by all that it may mind


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, backend: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, N, L, D).
        k: (B, N, S, D).
        v: (B, N, S, D). Whichever of the three has a last stride other than 1 is copied: no fused kernel takes it as it is.
        mask: (B, S) bool, True = attend; None = all. At least one True a row.
        backend: math (the reference), sdpa, xformers, or auto: what suits the device best of what runs on these very tensors.

    Returns:
        (B, N, L, D).

    Raises:
        UserError: unknown backend, or one that does not run on these tensors.

    Source: Vaswani et al. 2017, eq. 1.
    """
    q, k, v = _with_unit_stride(q), _with_unit_stride(k), _with_unit_stride(v)
    if backend == "auto":
        backend = choose(q, k, v, mask)
    elif backend not in _COMPUTE:
        raise unknown("attention backend", backend, BACKENDS)
    elif not torch.compiler.is_compiling() and not works(backend, q, k, v, mask):
        offered = ", ".join(available(q, k, v, mask))
        what = f"{q.device} with {q.dtype} and heads of width {q.shape[-1]}"
        raise UserError(f"attention backend {backend!r} does not run on {what}; this device offers: auto, {offered}")
    return _COMPUTE[backend](q, k, v, mask)


def available(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[str, ...]:
    """The backends that really run on such tensors; backward too, where a gradient will be wanted."""
    return tuple(name for name in _COMPUTE if works(name, q, k, v, mask))


def works(backend: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> bool:
    """Whether the backend runs on such tensors; found by a tiny call, once for each kind of them."""
    return _succeeds(_COMPUTE[backend], q, k, v, mask)


def choose(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str:
    """What `auto` means for these tensors; never depends on the batch, so an image is the same alone and in a batch.

    A fused kernel of torch if one runs on them, else of xformers, else math. One exception is measured (benchmarks/attention.md): on a CPU
    in bfloat16, math is faster where there are few keys. There are then at most 256 x 256 scores a head and image.
    """
    if torch.compiler.is_compiling() or q.device.type == "meta":
        return "sdpa"
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        most_keys = 256 if _wants_gradient(q, k, v) else 64
        if q.shape[-2] <= 256 and k.shape[-2] <= most_keys:
            return "math"
    if _succeeds(fused.sdpa_without_fallback, q, k, v, mask):
        return "sdpa"
    return "xformers" if works("xformers", q, k, v, mask) else "math"


def _with_unit_stride(part: Tensor) -> Tensor:
    # On the meta device a convolution forgets channels-last: a copy that no real device makes is not to be counted.
    return part if part.stride(-1) == 1 or part.is_meta else part.clone(memory_format=torch.contiguous_format)


def _wants_gradient(*parts: Tensor) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def _succeeds(compute: Compute, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    if q.is_meta:  # counts operations and bytes, computes nothing
        return compute is not fused.xformers
    is_training = _wants_gradient(q, k, v)
    key = (compute, q.device, q.dtype, q.shape[-1], mask is None, is_training, *map(_is_aligned, (q, k, v)))
    if key not in _found:
        few = [part[:1, :1, :8].detach().requires_grad_(is_training) for part in (q, k, v)]
        _found[key] = _probe(compute, few[0], few[1], few[2], None if mask is None else mask[:1, :8])
    return _found[key]


def _is_aligned(part: Tensor) -> bool:
    """Whether rows have no gaps and begin at multiples of 16 bytes: kernels mind the first, and some of GPUs the second."""
    return part.stride(-1) == 1 and all(step * part.element_size() % 16 == 0 for step in (*part.stride()[:-1], part.storage_offset()))


def _probe(compute: Compute, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    logger = logging.getLogger("xformers")  # tells at length, at its import, what it cannot do here; we ask and find out
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # Activation checkpointing counts what is saved: hooks of our own keep this call out of its count. And torch warns of each refusal.
        with (
            torch.autocast(q.device.type, enabled=False),
            saved_tensors_hooks(lambda saved: saved, lambda saved: saved),
            warnings.catch_warnings(action="ignore"),
        ):
            out = compute(q, k, v, mask)
            if out.requires_grad:
                torch.autograd.grad(out.sum(), (q, k, v))
    except (ImportError, OSError, RuntimeError, NotImplementedError, ValueError):
        return False
    finally:
        logger.setLevel(level)
    return True
