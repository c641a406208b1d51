"""Exponential moving average of weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """An averaged copy of a module, kept in float32 beside it.

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that a short run does not average its random start.
    """

    def __init__(self, module: M, decay: float) -> None:
        self.module: M = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, live: nn.Module, step: int) -> None:
        """Moves the copy towards the live weights after optimizer step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        means: list[torch.Tensor] = list(self.module.parameters())
        if means:
            get_ema_multi_avg_fn(decay)(means, list(live.parameters()), step)
        for mean, now in zip(self.module.buffers(), live.buffers(), strict=True):
            mean.copy_(now)
