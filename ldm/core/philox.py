"""Philox 4x32-7: random words as a function of a key and a counter, in integer arithmetic that is the same on every device.

A block is four words of 32 bits. Its counter is (place of the block in the sample, the sample's number); the key stands for all else. So
any part of a draw can be made anywhere, in any order. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2: seven
rounds are the fewest that pass TestU01's BigCrush.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
APART = 2  # rounds after which every block's numbers are its own; until then they depend on the place or on the sample alone
CHUNK = 1 << 15  # blocks at once on a CPU, whose intermediate numbers fit into its cache


def normal(samples: Tensor, size: int, key: int) -> Tensor:
    """(B, size) of N(0, 1), float32, by Box and Muller. Devices differ by an ulp or two, as their logarithms do.

    Args:
        samples: (B,) int64, each sample's number, from 0; the draw is made on their device.
        size: numbers a sample.
        key: of 64 bits.
    """
    blocks = -(-size // 4)
    out = torch.empty(len(samples), 4, blocks, device=samples.device)
    for rows, words in _words(samples, blocks, key):
        for first in (0, 2):
            radius = words[first].float().add_(0.5).mul_(2**-32).log_().mul_(-2).sqrt_()
            angle = words[first + 1].float().mul_(2 * math.pi * 2**-32)
            torch.mul(radius, angle.cos(), out=out[rows, first])
            torch.mul(radius, angle.sin_(), out=out[rows, first + 1])
    return out.flatten(1)[:, :size]


def uniform(samples: Tensor, size: int, key: int) -> Tensor:
    """(B, size) uniform in [0, 1), float32, a multiple of 2^-24: the same on every device. See `normal`."""
    blocks = -(-size // 4)
    out = torch.empty(len(samples), 4, blocks, device=samples.device)
    for rows, words in _words(samples, blocks, key):
        for place, word in enumerate(words):
            torch.mul(word.bitwise_right_shift_(8), 2**-24, out=out[rows, place])
    return out.flatten(1)[:, :size]


def _words(samples: Tensor, blocks: int, key: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Chunks of rows, and their four words (rows, blocks), which lie where the next chunk's will."""
    places = torch.arange(blocks, device=samples.device)[None]
    numbers = samples[:, None]
    keys = _keys(key)
    begun = _rounds((places, numbers & WORD, numbers >> 32, torch.zeros_like(places[:, :1])), keys[:APART])
    whole = [word.expand(len(samples), blocks) for word in begun]
    step = max(1, CHUNK // max(1, blocks)) if samples.device.type == "cpu" else len(samples)
    scratch = torch.empty(6, min(step, len(samples)), blocks, dtype=torch.int64, device=samples.device)
    for start in range(0, len(samples), step):
        rows = slice(start, min(start + step, len(samples)))
        work = list(scratch[:, : rows.stop - start])
        for own, word in zip(work, whole, strict=False):
            own.copy_(word[rows])
        yield rows, _rounds_in_place(work, keys[APART:])


def _keys(key: int) -> list[tuple[int, int]]:
    """Of each round."""
    low, high = key & WORD, key >> 32 & WORD
    return [((low + KEY_STEPS[0] * number) & WORD, (high + KEY_STEPS[1] * number) & WORD) for number in range(ROUNDS)]


def _rounds(counter: Sequence[Tensor], keys: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Four words, int64, of shapes that need only broadcast together. In the second and the fourth the lower 32 bits count."""
    a, b, c, d = counter
    for low, high in keys:
        of_a, of_c = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b = ((of_c >> 32) ^ b ^ low) & WORD, of_c
        c, d = ((of_a >> 32) ^ d ^ high) & WORD, of_a
    return [a, b, c, d]


def _rounds_in_place(work: Sequence[Tensor], keys: Sequence[tuple[int, int]]) -> list[Tensor]:
    """See `_rounds`; six tensors of one shape, the first four with the counter, give the words, each in [0, 2^32)."""
    a, b, c, d, of_a, of_c = work
    for low, high in keys:
        torch.mul(a, MULTIPLIERS[0], out=of_a)
        torch.mul(c, MULTIPLIERS[1], out=of_c)
        torch.bitwise_right_shift(of_c, 32, out=a).bitwise_xor_(b).bitwise_xor_(low).bitwise_and_(WORD)
        torch.bitwise_right_shift(of_a, 32, out=c).bitwise_xor_(d).bitwise_xor_(high).bitwise_and_(WORD)
        b, of_c, d, of_a = of_c, b, of_a, d
    return [a, b.bitwise_and_(WORD), c, d.bitwise_and_(WORD)]
