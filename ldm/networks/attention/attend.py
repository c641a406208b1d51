"""Attention with one signature for all backends. B batch, N heads, L queries, S keys, D width of a head."""

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
_found: dict[Hashable, bool] = {}  # whether a kernel runs, by everything that this may depend on


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, backend: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, N, L, D).
        k: (B, N, S, D).
        v: (B, N, S, D). If the last stride of q, k or v is not 1, it is copied, because no fused kernel supports that.
        mask: (B, S) bool, True = attend; None = all. At least one True per row.
        backend: math (the reference), sdpa, xformers, or auto: the best for the device among those that run on these tensors.

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
        tensors = f"{q.device} with {q.dtype} and heads of width {q.shape[-1]}"
        raise UserError(f"attention backend {backend!r} does not run on {tensors}; available: auto, {offered}")
    return _COMPUTE[backend](q, k, v, mask)


def available(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[str, ...]:
    """The backends that run on such tensors, including the backward pass if a gradient is needed."""
    return tuple(name for name in _COMPUTE if works(name, q, k, v, mask))


def works(backend: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> bool:
    """Whether the backend runs on such tensors; tried with a tiny call, once per kind of tensors."""
    return _succeeds(_COMPUTE[backend], q, k, v, mask)


def choose(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str:
    """The backend that `auto` means for these tensors. It never depends on the batch, so an image is the same alone and in a batch.

    A fused kernel of torch if one runs on them, else of xformers, else math. One exception is measured (benchmarks/attention.md): on a CPU
    in bfloat16, math is faster for few keys. It then stores at most 128 x 256 scores per head and image.
    """
    if torch.compiler.is_compiling() or q.device.type == "meta":
        return "sdpa"
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        queries, keys = q.shape[-2], k.shape[-2]
        most_keys, most_scores = (256, 128 * 256) if _wants_gradient(q, k, v) else (64, 64 * 256)
        if queries <= 256 and keys <= most_keys and queries * keys <= most_scores:
            return "math"
    if _succeeds(fused.sdpa_without_fallback, q, k, v, mask):
        return "sdpa"
    return "xformers" if works("xformers", q, k, v, mask) else "math"


def _with_unit_stride(part: Tensor) -> Tensor:
    # On the meta device a convolution loses channels-last. A copy there would be counted, though no real device makes it.
    return part if part.stride(-1) == 1 or part.is_meta else part.clone(memory_format=torch.contiguous_format)


def _wants_gradient(*parts: Tensor) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def _succeeds(compute: Compute, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    if q.is_meta:  # only counts operations and bytes
        return compute is not fused.xformers
    is_training = _wants_gradient(q, k, v)
    key = (compute, q.device, q.dtype, q.shape[-1], mask is None, is_training, *map(_is_aligned, (q, k, v)))
    if key not in _found:
        tiny = [part[:1, :1, :8].detach().requires_grad_(is_training) for part in (q, k, v)]
        _found[key] = _probe(compute, tiny[0], tiny[1], tiny[2], None if mask is None else mask[:1, :8])
    return _found[key]


def _is_aligned(part: Tensor) -> bool:
    """True if rows have no gaps and begin at multiples of 16 bytes. All fused kernels need the first, and some on GPUs the second."""
    return part.stride(-1) == 1 and all(step * part.element_size() % 16 == 0 for step in (*part.stride()[:-1], part.storage_offset()))


def _probe(compute: Compute, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    logger = logging.getLogger("xformers")  # at its import it logs at length what is not supported here, which the probe finds out anyway
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # Activation checkpointing counts saved tensors; our own hooks hide this call from it. And torch warns of every kernel it rejects.
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
