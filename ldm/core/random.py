"""Random numbers that depend on names only, not on the process or the batch that draws them.

The numbers of a sample are a function of (names, sample) by a counter-based generator, see `ldm.core.philox`. So sample i of a batch, or
image i of a call, gets the same numbers alone, in a batch, after a resume, and on any number of processes; and a draw can be made on any
device, or ahead of time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldm.core import philox

CPU = torch.device("cpu")


def digest(*names: object) -> int:
    """A 63-bit number that depends on the names' text."""
    text = "\x1f".join(map(str, names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(*names: object) -> torch.Generator:
    """A CPU generator that depends on the names only, e.g. `generator(seed, "order", epoch)`."""
    return torch.Generator().manual_seed(digest(*names))


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What is drawn, in full.

    Attributes:
        kind: of the numbers, float32: N(0, 1), or uniform in [0, 1).
        names: what the numbers depend on, beside each sample's own.
        samples: a number from 0 for each.
        shape: of one sample.
        device: where it is made.
    """

    kind: Literal["normal", "uniform"]
    names: tuple[object, ...]
    samples: tuple[int, ...]
    shape: tuple[int, ...]
    device: torch.device

    def make(self) -> Tensor:
        """(B, *shape)."""
        samples = torch.tensor(self.samples, dtype=torch.int64).to(self.device, non_blocking=True)
        numbers = (philox.normal if self.kind == "normal" else philox.uniform)(samples, math.prod(self.shape), digest(*self.names))
        return numbers.reshape(len(samples), *self.shape)


@dataclass(frozen=True)
class Streams:
    """Random numbers for the samples of a batch: one independent stream per sample and name.

    Attributes:
        names: what all samples share, e.g. (seed, "train", step).
        samples: one key per sample: its index in the *global* batch, or the image's number in a call.
        maker: what makes a draw, or had it made ahead.
    """

    names: tuple[object, ...]
    samples: tuple[int, ...]
    maker: Callable[[Draw], Tensor] = Draw.make

    @staticmethod
    def of(*names: object, samples: Sequence[int]) -> Streams:
        return Streams(names, tuple(samples))

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, start: int, stop: int) -> Streams:
        """The streams of samples start to stop."""
        return Streams(self.names, self.samples[start:stop], self.maker)

    def under(self, *names: object) -> Streams:
        """The same samples, with these names appended."""
        return Streams((*self.names, *names), self.samples, self.maker)

    def generators(self, name: object) -> list[torch.Generator]:
        """One generator per sample, on the CPU, for what draws a number at a time."""
        return [generator(*self.names, name, sample) for sample in self.samples]

    def normal(self, name: object, shape: Sequence[int] = (), device: torch.device = CPU) -> Tensor:
        """(B, *shape) of N(0, 1), float32; devices differ by an ulp or two."""
        return self.maker(Draw(kind="normal", names=(*self.names, name), samples=self.samples, shape=tuple(shape), device=device))

    def uniform(self, name: object, shape: Sequence[int] = (), device: torch.device = CPU) -> Tensor:
        """(B, *shape) uniform in [0, 1), float32; the same on every device."""
        return self.maker(Draw(kind="uniform", names=(*self.names, name), samples=self.samples, shape=tuple(shape), device=device))
