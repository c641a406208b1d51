"""Attention under one signature, whatever computes it. B batch, N heads, L queries, S keys, D width of a head."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ldm.core.errors import UserError, unknown
from ldm.networks.attention import fused, reference

_COMPUTE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "math": reference.math,
    "sdpa": fused.sdpa,
    "xformers": fused.xformers,
}
BACKENDS = ("auto", *_COMPUTE)
_works: dict[tuple[str, str, torch.dtype], bool] = {}


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, backend: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, N, L, D).
        k: (B, N, S, D).
        v: (B, N, S, D).
        mask: (B, S) bool, True = attend; None = all. At least one True a row.
        backend: math (the reference), sdpa, xformers, or auto: what suits the device best of what it really offers.

    Returns:
        (B, N, L, D).

    Raises:
        UserError: unknown backend, or one that does not run on this device with this dtype.

    Source: Vaswani et al. 2017, eq. 1.
    """
    if backend == "auto":
        backend = choose(q, k)
    elif backend not in _COMPUTE:
        raise unknown("attention backend", backend, BACKENDS)
    elif not torch.compiler.is_compiling() and not works(backend, q.device, q.dtype):
        offered = ", ".join(available(q.device, q.dtype))
        raise UserError(f"attention backend {backend!r} does not run on {q.device} with {q.dtype}; this device offers: auto, {offered}")
    return _COMPUTE[backend](q, k, v, mask)


def available(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The backends that really run, forward and backward, on this device with this dtype."""
    return tuple(name for name in _COMPUTE if works(name, device, dtype))


def works(backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a tiny real call of the backend succeeds; asked once per (backend, device, dtype) of a process."""
    key = (backend, str(device), dtype)
    if key not in _works:
        _works[key] = _probe(_COMPUTE[backend], device, dtype)
    return _works[key]


def choose(q: Tensor, k: Tensor) -> str:
    """What `auto` means for these queries and keys; never depends on the batch, so a picture is the same alone and in one.

    On a CPU, measured with torch 2.15 (AVX-512, one thread, 24 x 4 or 8 heads of 32 or 64): sdpa's bfloat16 backward is slow. Forward and
    backward of math take 0.10-0.23 of its time for 32 or 64 keys and 0.4-0.9 for 256; forward alone 0.5-0.85 for 32 or 64 keys, but up to
    2.3 times for 256. In float32 sdpa is 0.9-1.7 times as fast. Elsewhere: a fused kernel of torch, else of xformers, else math.
    """
    if torch.compiler.is_compiling() or q.device.type == "meta":
        return "sdpa"
    if q.device.type == "cpu":
        is_training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
        most_keys = 256 if is_training else 64
        return "math" if q.dtype == torch.bfloat16 and q.shape[-2] <= 256 and k.shape[-2] <= most_keys else "sdpa"
    key = ("fused sdpa", str(q.device), q.dtype)
    if key not in _works:
        _works[key] = _probe(fused.sdpa_without_fallback, q.device, q.dtype)
    if _works[key]:
        return "sdpa"
    return "xformers" if works("xformers", q.device, q.dtype) else "math"


def _probe(compute: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor], device: torch.device, dtype: torch.dtype) -> bool:
    if device.type == "meta":  # counts operations and bytes, computes nothing
        return compute is not fused.xformers
    logger = logging.getLogger("xformers")  # tells at length, at its import, what it cannot do here; we ask and find out
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            q = torch.ones(1, 1, 8, 32, device=device, dtype=dtype, requires_grad=True)
            for mask in (None, torch.ones(1, 8, device=device, dtype=torch.bool)):
                out = compute(q, q, q, mask)
                torch.autograd.grad(out.sum(), q)
    except (ImportError, OSError, RuntimeError, NotImplementedError, ValueError):
        return False
    finally:
        logger.setLevel(level)
    return True
