"""A denoiser's output for a noisy sample, whatever its network predicts: x0 and eps of x_t = alpha x0 + sigma eps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """The expected clean sample and the expected noise; all of x_t's shape.

    Attributes:
        variance_logits: v of Nichol & Dhariwal 2021, eq. 15: it interpolates the log of a step's variance from the posterior's own (0) to
            that of q(x_t | x_s) (1), and is not bounded. `NoiseProcess.log_variance` reads it. None = not learned.
    """

    x0: Tensor
    eps: Tensor
    variance_logits: Tensor | None = None

    def toward(self, other: Estimate, scale: float) -> Estimate:
        """self + scale * (other - self); scale above 1 extrapolates. The variance_logits are the other's."""
        x0, eps = (start + scale * (end - start) for start, end in ((self.x0, other.x0), (self.eps, other.eps)))
        return Estimate(x0=x0, eps=eps, variance_logits=other.variance_logits)


Denoise = Callable[[Tensor, Tensor], Estimate]
"""(x_t of (B, ...), t of (B,) in (0, 1] on any device) -> Estimate. Guidance wraps one into another; samplers call one."""
