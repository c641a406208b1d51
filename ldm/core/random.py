"""Random numbers that depend on names only, not on the process or the batch that draws them.

Every draw has its own generator, seeded by a digest of (seed, names, sample). So sample i of a batch, or image i of a call, gets the
same numbers alone, in a batch, after a resume, and on any number of processes. Draws are made on the CPU for the same reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def digest(*names: object) -> int:
    """A 63-bit number that depends on the names' text."""
    text = "\x1f".join(map(str, names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(*names: object) -> torch.Generator:
    """A CPU generator that depends on the names only, e.g. `generator(seed, "order", epoch)`."""
    return torch.Generator().manual_seed(digest(*names))


@dataclass(frozen=True)
class Streams:
    """Random numbers for the samples of a batch: one independent stream per sample and name.

    Attributes:
        names: what all samples share, e.g. (seed, "train", step).
        samples: one key per sample: its index in the *global* batch, or the image's number in a call.
    """

    names: tuple[object, ...]
    samples: tuple[int, ...]

    @staticmethod
    def of(*names: object, samples: Sequence[int]) -> Streams:
        return Streams(names, tuple(samples))

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, start: int, stop: int) -> Streams:
        """The streams of samples start to stop."""
        return Streams(self.names, self.samples[start:stop])

    def under(self, *names: object) -> Streams:
        """The same samples, with these names appended."""
        return Streams((*self.names, *names), self.samples)

    def generators(self, name: object) -> list[torch.Generator]:
        """One generator per sample."""
        return [generator(*self.names, name, sample) for sample in self.samples]

    def normal(self, name: object, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) of N(0, 1), float32, on the CPU."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators(name)])

    def uniform(self, name: object, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) uniform in [0, 1), float32, on the CPU."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self.generators(name)])
