"""What a network's output means: F = a x0 + b eps.

With x_t = alpha x0 + sigma eps this is a 2x2 system of determinant alpha b - sigma a. So one pair (a, b) gives the training target, the
estimate that an output means, and the error of x0 that an error of the output causes. A kind is ill-posed where the determinant is 0.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import Family, kind
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.process import NoiseProcess


class Prediction(Family, abc.ABC):
    """A meaning of the output. alpha and sigma broadcast with a sample."""

    __slots__ = ()

    @abc.abstractmethod
    def mix(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of F = a x0 + b eps."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The output of a perfect network."""
        a, b = self.mix(alpha, sigma)
        return a * x0 + b * eps

    def read(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        """x0 and eps that an output means."""
        a, b = self.mix(alpha, sigma)
        det = self.determinant(alpha, sigma)
        return Estimate(x0=(b * x_t - sigma * output) / det, eps=(alpha * output - a * x_t) / det)

    def x0_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """|error of x0| per |error of the output|."""
        return (sigma / self.determinant(alpha, sigma)).abs()

    def determinant(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """alpha b - sigma a; 0 where the output does not determine x0 or eps."""
        a, b = self.mix(alpha, sigma)
        return alpha * b - sigma * a

    def check(self, process: NoiseProcess) -> None:
        """Checks that the output determines x0 at the process's noisiest time.

        Raises:
            UserError: it does not; the message says what to use instead.
        """
        t = torch.tensor(process.t_last, dtype=torch.float64)
        if self.determinant(process.alpha(t), process.sigma(t)) == 0:
            raise UserError(
                f"prediction {self.kind!r} is undefined at zero SNR, where this process ends (zero_terminal_snr, rectified_flow): "
                "use 'v', 'x0', 'velocity' or 'edm', or a process that keeps some signal"
            )


@kind("eps")
@dataclass(frozen=True, kw_only=True, slots=True)
class EpsPrediction(Prediction):
    """The noise. Ho et al. 2020, eq. 14. x0 is undefined at alpha = 0."""

    def mix(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(sigma)


@kind("x0")
@dataclass(frozen=True, kw_only=True, slots=True)
class X0Prediction(Prediction):
    """The clean sample. eps is undefined at sigma = 0."""

    def mix(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(alpha), torch.zeros_like(sigma)


@kind("v")
@dataclass(frozen=True, kw_only=True, slots=True)
class VPrediction(Prediction):
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D): dx/dphi for alpha = cos phi, sigma = sin phi. Never ill-posed."""

    def mix(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -sigma, alpha


@kind("velocity")
@dataclass(frozen=True, kw_only=True, slots=True)
class VelocityPrediction(Prediction):
    """eps - x0: dx/dt of the rectified flow. Never ill-posed.

    For any other process it is the slope dy/du of y = x / (alpha + sigma) in the time variable u = sigma / (alpha + sigma). In these
    variables every process is a rectified flow (`NoiseProcess.noise_share`); the slope is not its dx/dt. Liu et al. 2023, eq. 1; Lipman et
    al. 2023.
    """

    def mix(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(alpha), torch.ones_like(sigma)


@kind("edm")
@dataclass(frozen=True, kw_only=True, slots=True)
class EDMPrediction(Prediction):
    """F of x0 = c_skip x + c_out F, for data of standard deviation sigma_data. Karras et al. 2022, table 1. Never ill-posed.

    Theirs is for alpha = 1: c_skip = sd^2 / (sigma^2 + sd^2), c_out = sigma sd / sqrt(sigma^2 + sd^2). Other processes are treated as
    x / alpha with the noise sigma / alpha. c_in and the network_time belong to the network input of the same name.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise UserError(f"prediction edm needs sigma_data > 0, got {self.sigma_data}")

    def mix(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        total = (sigma**2 + (alpha * self.sigma_data) ** 2).sqrt()
        return sigma / (total * self.sigma_data), -alpha * self.sigma_data / total


@kind("score")
@dataclass(frozen=True, kw_only=True, slots=True)
class ScorePrediction(Prediction):
    """The gradient of log p_t, -eps / sigma. Song et al. 2021, eq. 7. x0 is undefined at alpha = 0.

    It grows without bound as the noise goes to 0. The weighting `snr` gives its squared error the weight sigma^2, as in the paper.
    """

    def mix(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), -1 / sigma
