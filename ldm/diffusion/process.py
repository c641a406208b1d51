"""The forward process: x_t = alpha(t) x0 + sigma(t) eps, which is the marginal of dx = f(t) x dt + g(t) dw.

t is the process time: 0 = data, 1 = the noisiest, growing with noise. alpha and sigma are standard deviations, never squared;
log_snr = log(alpha^2 / sigma^2), which is twice what DPM-Solver calls lambda.

Times may be of any shape and dtype, and on any device that has float64, as Apple's GPUs have not. Coefficients are float64 on the times'
device. Samplers and losses keep times on the CPU, so they never block an accelerator. `scales` gives coefficients in a sample's dtype and
on its device.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import Family
from ldm.core.shapes import over
from ldm.diffusion.estimate import Estimate


class NoiseProcess(Family, abc.ABC):
    """A Gaussian forward process on t in [0, 1]; at t = 0, sigma is 0 and alpha is 1.

    Attributes:
        num_steps: number of steps of its chain, which also scales the network_time. A continuous process has no chain of its own: there it
            only scales the network_time and sets the steps of chains that approximate the process.
    """

    __slots__ = ()
    num_steps: int

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal, float64, of t's shape."""

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise, float64, of t's shape."""

    @abc.abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), float64, falling in t; +inf at t = 0, -inf at zero SNR."""

    @abc.abstractmethod
    def time_at(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, float64; values outside the process's range give the nearer end."""

    @abc.abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt, float64, of t's shape; infinite at t = 0 if sigma grows like a square root."""

    @property
    def t_first(self) -> float:
        """The least noisy time that networks are trained at."""
        return 1.0 / self.num_steps

    @property
    def t_last(self) -> float:
        """The noisiest time; sampling starts here."""
        return 1.0

    @property
    def prior_std(self) -> float:
        """Standard deviation of the N(0, prior_std^2) that sampling starts from at t = 1."""
        return 1.0

    def drift(self, t: Tensor) -> Tensor:
        """f = d log alpha / dt, float64; -inf at zero SNR."""
        return self.rates(t)[0] / self.alpha(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g^2 = d sigma^2 / dt - 2 f sigma^2 = -sigma^2 d log_snr / dt, float64."""
        sigma = self.sigma(t)
        return 2 * sigma * (self.rates(t)[1] - self.drift(t) * sigma)

    def scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t, () or (B,), in x's dtype and on its device, shaped to multiply x of (B, ...)."""
        return over(self.alpha(t).to(x.dtype), x), over(self.sigma(t).to(x.dtype), x)

    def blend(self, estimate: Estimate, s: Tensor) -> Tensor:
        """alpha(s) x0 + sigma(s) eps: the forward process if eps is drawn, a DDIM step if it is estimated."""
        alpha, sigma = self.scales(s, estimate.x0)
        return alpha * estimate.x0 + sigma * estimate.eps

    def time_of_noise(self, noise_ratio: float) -> float:
        """The time at which sigma / alpha has this value."""
        return self.time_at(torch.tensor(-2 * math.log(noise_ratio), dtype=torch.float64)).item()

    def noise_share(self, t: Tensor) -> Tensor:
        """u = sigma / (alpha + sigma): with u as time, x / (alpha + sigma) of every process is a rectified flow."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        return sigma / (alpha + sigma)

    def step_variance(self, s: Tensor, t: Tensor) -> Tensor:
        """Variance of q(x_t | x_s), s < t: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2. For adjacent steps it is Ho et al.'s beta_t."""
        return self.sigma(t) ** 2 - (self.alpha(t) / self.alpha(s) * self.sigma(s)) ** 2

    def posterior_variance(self, s: Tensor, t: Tensor) -> Tensor:
        """Variance of q(x_s | x_t, x0), s < t: Ho et al.'s beta tilde for any two times."""
        return self.step_variance(s, t) * (self.sigma(s) / self.sigma(t)) ** 2

    def posterior_mean(self, x0: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_s | x_t, x0), s < t: Ho et al. 2020, eq. 7, for any two times (Kingma et al. 2021, appendix A)."""
        of_x_t = self.alpha(t) / self.alpha(s) * (self.sigma(s) / self.sigma(t)) ** 2
        of_x0 = self.alpha(s) * self.step_variance(s, t) / self.sigma(t) ** 2
        return over(of_x_t.to(x_t.dtype), x_t) * x_t + over(of_x0.to(x_t.dtype), x_t) * x0

    def log_variance(self, variance_logits: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """log of a learned variance of x_s given x_t: v log beta + (1 - v) log beta tilde with v the variance_logits; of their shape.

        beta tilde is 0 at s = 0; as in the published code it is replaced there by the next step's, that of (t, 2 t). This needs t < 1.

        Args:
            variance_logits: (B, ...), 0 = the posterior's own variance, 1 = that of q(x_t | x_s).
            s: () or (B,), and t likewise, s < t.

        Source: Nichol & Dhariwal 2021, eq. 15.
        """
        small = self.posterior_variance(s, t)
        at_data = self.posterior_variance(t, (2 * t.double()).clamp(max=self.t_last))
        low = torch.where(self.sigma(s) == 0, at_data, small).log()
        high = self.step_variance(s, t).log()
        return over(low.to(variance_logits.dtype), variance_logits) + variance_logits * over(
            (high - low).to(variance_logits.dtype), variance_logits
        )


def refuse_few_steps(num_steps: int) -> None:
    """Refuses, by UserError, a chain of fewer than 2 steps."""
    if num_steps < 2:
        raise UserError(f"a noise process needs num_steps >= 2, got {num_steps}")
