"""The numbers of steps, left on the device until a block of them is read at once: only then does the host wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """One step's.

    Attributes:
        step: its number.
        names: of its losses, then of its gradients' norms.
        values: (N,) float32, on the device.
        num_losses: how many of them are losses.
        learning_rate: which the host knows.
        samples: names of this process's pictures.
    """

    step: int
    names: tuple[str, ...]
    values: Tensor
    num_losses: int
    learning_rate: float
    samples: tuple[str, ...]


def read(block: Sequence[StepNumbers]) -> list[dict[str, float]]:
    """The numbers of each step by name; waits until the last of them is known."""
    values = iter(torch.cat([one.values for one in block]).tolist())
    return [{name: next(values) for name in one.names} for one in block]
