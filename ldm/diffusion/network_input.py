"""What a network is fed at time t: the scaled sample and its own clock."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.family import Family, kind
from ldm.diffusion.process import NoiseProcess


class NetworkInput(Family, abc.ABC):
    """Turns (x_t, t) into what the network sees."""

    __slots__ = ()

    @abc.abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        """Input (B, ...) and clock (B,), both float32 on x_t's device; t is (B,)."""


@kind("table_index")
@dataclass(frozen=True, kw_only=True, slots=True)
class TableIndex(NetworkInput):
    """x_t as it is; the clock is the index into the published table, 0 to N - 1, and lies between indices for times between steps."""

    def __call__(self, x_t: Tensor, t: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        clock = (t.double() * process.num_steps - 1).clamp(min=0)  # below the first step no network was trained
        return x_t.float(), clock.to(torch.float32).to(x_t.device)
