"""Which kernel every attending block really runs, by its name in torch.profiler: one that never holds all scores.

That they compute what the reference does: tests/networks/test_attention.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.conditioning.transformer import Layer
from ldm.networks.blocks.attention_pool import AttentionPool
from ldm.networks.blocks.spatial_attention import MultiHeadSpatialAttention, SpatialSelfAttention
from ldm.networks.blocks.transformer import SpatialTransformer

SIDE, TOKENS, WIDTH = 18, 77, 64
# torch's flash, cuDNN's, torch's and xformers' memory-efficient; on a CPU the operation's name says as much.
FUSED = re.compile(r"flash|sdpa|fmha|efficient_attention", re.IGNORECASE)
BACKWARD = re.compile(r"bwd|bprop|cutlassB|backward", re.IGNORECASE)
UNFUSED = re.compile("softmax", re.IGNORECASE)  # of scores that were held; no fused kernel has it in its name
# Widths of heads: 32 and 64, Stable Diffusion's 40, 80 and 160, and the autoencoders' one head of 512.
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "one head of 64": lambda: SpatialSelfAttention(64),
    "one head of 512": lambda: SpatialSelfAttention(512),
    "heads of 32": lambda: MultiHeadSpatialAttention(64, 2),
    "heads of 64": lambda: MultiHeadSpatialAttention(128, 2),
    "transformer, heads of 40": lambda: SpatialTransformer(320, 8, context_width=WIDTH),
    "transformer, heads of 80": lambda: SpatialTransformer(320, 4, context_width=WIDTH),
    "transformer, heads of 160": lambda: SpatialTransformer(320, 2, context_width=WIDTH),
    "pool": lambda: AttentionPool(64, SIDE * SIDE, 2, 10),
    "text encoder": lambda: Layer(BertScratchConfig(width=WIDTH, depth=1, heads=2, head_width=32)),
}
CASES = [*BLOCKS, *(f"{name}, masked" for name in BLOCKS if name.startswith(("transformer", "text")))]
# A CPU in bfloat16 leaves few positions to the reference, which is faster there; tests/networks/test_attention.py has what must be fused.
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16, torch.float16)}


def kernels_of(device: torch.device, work: Callable[[], object]) -> list[str]:
    """Names of all that ran on the device; on the CPU, of its operations."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as seen:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    place = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    return [event.name for event in seen.events() if event.device_type == place]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("case", CASES)
def test_a_block_runs_fused(device: torch.device, order: torch.memory_format, case: str, record_property: Callable[..., None]) -> None:
    """Forward and backward, as a network runs in training: weights in float32, under autocast where it computes in half precision."""
    name, _, is_masked = case.partition(", masked")
    block = BLOCKS[name]().to(device, memory_format=order)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, TOKENS, WIDTH, generator=draw).to(device)
    mask = (torch.arange(TOKENS) < torch.tensor([[5], [TOKENS]])).to(device) if is_masked else None
    if name == "text encoder":
        inputs: tuple[Tensor | None, ...] = (tokens, mask)
    else:
        channels = block.place.shape[1] if name == "pool" else block.norm.num_channels
        x = torch.randn(2, channels, SIDE, SIDE, generator=draw).to(device, memory_format=order)
        x.requires_grad_()  # as within a network; without it torch 2.11's norm crashes in channels-last on a CPU
        inputs = (x, tokens, mask) if name.startswith("transformer") else (x,)

    def step(dtype: torch.dtype) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = block(*inputs)
        out.float().square().mean().backward()

    for dtype in DTYPES[device.type]:
        step(dtype)  # what is asked of the kernels once, is asked here
        names = kernels_of(device, functools.partial(step, dtype))
        fused = sorted({kernel for kernel in names if FUSED.search(kernel)})
        record_property(f"kernels, {dtype}", fused)
        assert [kernel for kernel in names if UNFUSED.search(kernel)] == [], dtype
        assert any(BACKWARD.search(kernel) for kernel in fused), (dtype, names)
        assert any(not BACKWARD.search(kernel) for kernel in fused), (dtype, names)
