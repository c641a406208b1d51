"""Attention kernels that never store all scores. Same arguments as `reference.math`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """torch's own: flash, cuDNN or memory-efficient, depending on device, dtype and shapes, else its unfused fallback."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])


def sdpa_without_fallback(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`sdpa`, but raises RuntimeError if no fused kernel runs. During the call the fallback is disabled for other threads too."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        return sdpa(q, k, v, mask)


def xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """xformers' memory-efficient attention, if its kernels support the installed torch and the GPU.

    Its own layout is (B, L, N, D); a bias must have its full shape, with rows that lie in memory at multiples of 8 numbers.
    """
    from xformers.ops import memory_efficient_attention

    bias = None
    if mask is not None:
        length = mask.shape[1]
        padded = q.new_zeros(mask.shape[0], 1, 1, -(-length // 8) * 8)
        padded[..., :length].masked_fill_(~mask[:, None, None, :], float("-inf"))
        bias = padded.expand(-1, q.shape[1], q.shape[2], -1)[..., :length]
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    out: Tensor = memory_efficient_attention(q, k, v, attn_bias=bias).transpose(1, 2)
    return out
