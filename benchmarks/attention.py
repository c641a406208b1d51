"""What fused attention saves: time and memory of the attending blocks as they were, unfused, and as they are.

    python benchmarks/attention.py block    # 8 heads, 8x256x32x32, forward and backward
    python benchmarks/attention.py kl-f8    # the published autoencoder encodes and decodes 1024x1024; needs 8 GB
    python benchmarks/attention.py bf16     # the reference against torch's kernel on a CPU: where `auto` prefers which

"Before" are the forward passes that stand below: those of the blocks before they minded the order of memory, so that torch fell back to its
unfused path. One thread; seconds are those of the processor, so other work beside it does not count. Memory is what the system gave
(Linux only), in a process of its own, above what that held before.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ldm.app.train_vae import TrainVAE
from ldm.config.loader import load
from ldm.networks.attention import fused, reference
from ldm.networks.blocks.spatial_attention import MultiHeadSpatialAttention, SpatialSelfAttention

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
WHICH = ("before", "now")
KEYS = (16, 64, 77, 128, 256)
NOW = SpatialSelfAttention.forward, MultiHeadSpatialAttention.forward
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # has glibc return a tensor's memory as soon as it is freed; costs time


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="Time and memory of attention, as it was and as it is.")
    parser.add_argument("part", choices=["block", "kl-f8", "bf16"])
    {"block": block, "kl-f8": kl_f8, "bf16": bf16}[parser.parse_args().part]()


def one_head_before(self: SpatialSelfAttention, x: Tensor) -> Tensor:
    h = self.norm(x)
    q, k, v = (rearrange(part(h), "b d h w -> b 1 (h w) d") for part in (self.q, self.k, self.v))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return x + self.proj_out(rearrange(mixed, "b 1 (h w) d -> b d h w", h=x.shape[2]))


def heads_before(self: MultiHeadSpatialAttention, x: Tensor) -> Tensor:
    q, k, v = rearrange(self.qkv(self.norm(x)), "b (n three d) h w -> three b n (h w) d", three=3, n=self.heads).unbind()
    mixed = F.scaled_dot_product_attention(q, k, v)
    return x + self.proj_out(rearrange(mixed, "b n (h w) d -> b (n d) h w", h=x.shape[2]))


def block() -> None:
    print(f"8 heads, 8x256x32x32, forward and backward\n{'':12}{'before':>24}{'now':>24}{'before / now':>28}")
    for dtype in (torch.float32, torch.bfloat16):
        for order in (torch.contiguous_format, torch.channels_last):
            kind = dtype, order
            with patch.dict(os.environ, GIVE_BACK):
                bytes_before, bytes_now = (apart(block_memory, which, *kind) for which in WHICH)
            before, now, quotients = apart(block_seconds, *kind)
            numbers = [f"{seconds:.2f} s {count / 2**20:6.0f} MiB" for seconds, count in ((before, bytes_before), (now, bytes_now))]
            quotient = f"{statistics.median(quotients):.2f} ({min(quotients):.2f} to {max(quotients):.2f})"
            print(
                f"{name_of(dtype):9} {name_of(order):18}{numbers[0]:>22}{numbers[1]:>22}{quotient:>24}{bytes_before / bytes_now:>8.1f}",
                flush=True,
            )


def pass_of(dtype: torch.dtype, order: torch.memory_format) -> Callable[[str], None]:
    """One forward and backward pass of the block, of a kind of WHICH."""
    torch.manual_seed(0)
    attention = MultiHeadSpatialAttention(256, 8).to(memory_format=order)
    x = torch.randn(8, 256, 32, 32).to(memory_format=order).requires_grad_()

    def run(which: str) -> None:
        take(which)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = attention(x)
        out.sum().backward()

    return run


def block_seconds(dtype: torch.dtype, order: torch.memory_format) -> tuple[float, float, list[float]]:
    """Medians before and now, and the quotient of each of five pairs."""
    run = pass_of(dtype, order)
    pairs = [[seconds(lambda which=which: run(which)) for which in WHICH] for _ in range(6)][1:]
    before, now = (statistics.median(times) for times in zip(*pairs, strict=True))
    return before, now, [a / b for a, b in pairs]


def block_memory(which: str, dtype: torch.dtype, order: torch.memory_format) -> int:
    run = pass_of(dtype, order)
    run(which)  # loads code
    return peak(lambda: run(which))


def kl_f8() -> None:
    print("KL-f8, one picture of 1024x1024, float32, no gradients")
    with patch.dict(os.environ, GIVE_BACK):
        for which in WHICH:
            found = apart(kl_f8_of, which)
            print(
                f"{which:8}" + ", ".join(f"{what} {spent:.0f} s {count / 2**20:.0f} MiB" for what, (spent, count) in found.items()),
                flush=True,
            )


def kl_f8_of(which: str) -> dict[str, tuple[float, int]]:
    """Seconds and bytes of encoding and decoding, and of two blocks alone: the attention, and the first one at the full size."""
    take(which)
    torch.manual_seed(0)
    first_stage = load(ROOT / "configs/published/kl-f8.yaml", TrainVAE).first_stage.build()
    middle, first_block = first_stage.encoder.mid.attn_1, first_stage.encoder.down[0].block[0]
    images, latent, found = torch.rand(1, 3, 1024, 1024) * 2 - 1, torch.randn(1, 4, 128, 128), {}
    jobs: list[tuple[str, Callable[[], Tensor]]] = [
        ("encode", lambda: first_stage.encode(images)),
        ("decode", lambda: first_stage.decode(latent)),
        ("attention alone", lambda: middle(torch.randn(1, 512, 128, 128))),
        ("first residual block alone", lambda: first_block(torch.randn(1, 128, 1024, 1024))),
    ]
    with torch.no_grad():
        first_stage.decode(first_stage.encode(images[:, :, :64, :64]))  # loads code
        for what, compute in jobs:
            start = time.process_time()
            most = peak(compute)
            found[what] = time.process_time() - start, most
    return found


def bf16() -> None:
    print(f"math's time in sdpa's, median of five pairs; 24 images\n{'keys':52}" + "".join(f"{keys:>7}" for keys in KEYS), flush=True)
    apart(bf16_rows)


def bf16_rows() -> None:
    for trains, (heads, width), queries in product((True, False), ((4, 64), (8, 32), (1, 256)), (64, 256)):
        row = [quotient(trains, heads, width, queries, keys) for keys in KEYS]
        name = f"forward{' and backward' if trains else ''}, {heads} x {width}, {queries} queries"
        print(f"{name:52}" + "".join(f"{value:>7.2f}" for value in row), flush=True)


def quotient(trains: bool, heads: int, width: int, queries: int, keys: int) -> float:
    """The median of what math takes over what sdpa takes, of five pairs."""

    def tokens(count: int) -> Tensor:
        return torch.randn(24, count, heads, width).bfloat16().transpose(1, 2).requires_grad_(trains)

    q, k, v, gradient = tokens(queries), tokens(keys), tokens(keys), tokens(queries).detach()

    def run(compute: Callable[..., Tensor]) -> None:
        out = compute(q, k, v, None)
        if trains:
            torch.autograd.grad(out, (q, k, v), gradient)

    pairs = [[seconds(lambda compute=compute: run(compute)) for compute in (reference.math, fused.sdpa)] for _ in range(6)][1:]
    return statistics.median(math / sdpa for math, sdpa in pairs)


def take(which: str) -> None:
    """Has the blocks attend as they did before, or as they do now."""
    SpatialSelfAttention.forward, MultiHeadSpatialAttention.forward = NOW if which == "now" else (one_head_before, heads_before)


def apart(job: Callable[..., T], *arguments: object) -> T:
    """What a job gives, in a fresh process of one thread."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(job, *arguments).result()


def seconds(compute: Callable[[], object]) -> float:
    """Of the processor."""
    start = time.process_time()
    compute()
    return time.process_time() - start


def peak(compute: Callable[[], object]) -> int:
    """Bytes that the process held at most meanwhile, above what it held before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = held("VmRSS")
    compute()
    return held("VmHWM") - before


def held(key: str) -> int:
    """Bytes of this process now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def name_of(dtype_or_order: torch.dtype | torch.memory_format) -> str:
    return str(dtype_or_order).removeprefix("torch.").removesuffix("_format")


if __name__ == "__main__":
    main()
