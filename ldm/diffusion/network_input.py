"""What a network is fed at time t: the scaled sample and the network_time."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import Family, kind
from ldm.core.shapes import over
from ldm.diffusion.process import NoiseProcess


class NetworkInput(Family, abc.ABC):
    """Turns (x_t, t) into the network's input."""

    __slots__ = ()

    @abc.abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        """Input (B, ...) and network_time (B,), both float32 on x_t's device; t is (B,)."""

    def check(self, process: NoiseProcess) -> None:
        """Checks that the network_time is finite at the process's noisiest time.

        Raises:
            UserError: it is not; the message says what to use instead.
        """
        last = torch.full((1,), process.t_last, dtype=torch.float64)
        if not self(torch.zeros(1), last, process)[1].isfinite():
            raise UserError(f"network_input {self.kind!r} has no finite network_time at zero SNR, where {process.kind!r} ends: use 'time'")


@kind("table_index")
@dataclass(frozen=True, kw_only=True, slots=True)
class TableIndex(NetworkInput):
    """x_t unchanged; the network_time is the index into the published table, 0 to N - 1, fractional between steps."""

    def __call__(self, x_t: Tensor, t: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        network_time = (t.double() * process.num_steps - 1).clamp(min=0)  # no network is trained below the first step
        return x_t.float(), network_time.to(torch.float32).to(x_t.device, non_blocking=True)


@kind("time")
@dataclass(frozen=True, kw_only=True, slots=True)
class Time(NetworkInput):
    """x_t unchanged; the network_time is (N - 1) t, 999 t for N = 1000. For Song et al. 2021's networks of continuous processes."""

    def __call__(self, x_t: Tensor, t: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        return x_t.float(), (t.double() * (process.num_steps - 1)).to(torch.float32).to(x_t.device, non_blocking=True)


@kind("edm")
@dataclass(frozen=True, kw_only=True, slots=True)
class EDMInput(NetworkInput):
    """c_in x_t, of standard deviation 1; the network_time is ln(sigma / alpha) / 4. Karras et al. 2022, table 1.

    c_in = 1 / sqrt(sigma^2 + (alpha sigma_data)^2), for data of standard deviation sigma_data.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise UserError(f"network_input edm needs sigma_data > 0, got {self.sigma_data}")

    def __call__(self, x_t: Tensor, t: Tensor, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        scale = (process.sigma(t) ** 2 + (process.alpha(t) * self.sigma_data) ** 2).rsqrt()
        network_time = -process.log_snr(t) / 8
        return over(scale.to(torch.float32), x_t) * x_t.float(), network_time.to(torch.float32).to(x_t.device, non_blocking=True)
