"""Exponential moving average of weights."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ldm.training.parallel import own

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """An averaged copy of a module, kept in float32 beside it.

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that a short run does not average its random start.
    """

    def __init__(self, module: M, decay: float) -> None:
        self.module: M = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self._live = module

    @cached_property
    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        """What this process has of each, beside the live one's."""
        return [(own(mean), own(now)) for mean, now in zip(self.module.parameters(), self._live.parameters(), strict=True)]

    @torch.no_grad()
    def update(self, step: int, is_taken: Tensor) -> None:
        """Moves the copy towards the live weights after optimizer step `step`, counted from 1.

        Args:
            step: see above.
            is_taken: () bool on the weights' device; False leaves the copy as it is. `torch.optim.swa_utils` takes a decay that the host
                knows, which would have to wait for it; an interpolation by a share on the device takes as long, and no memory.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        share = torch.where(is_taken, 1 - decay, 0.0)
        for mean, now in self._weights:
            mean.lerp_(now, share)

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Gives the copy the live buffers, which are not averaged: before it is used or saved."""
        for mean, now in zip(self.module.buffers(), self._live.buffers(), strict=True):
            mean.copy_(now)
