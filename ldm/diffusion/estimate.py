"""What a denoiser says of a noisy sample, whatever its network predicts: both ends of x_t = alpha x0 + sigma eps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """The expected clean sample and the expected noise; all of x_t's shape.

    Attributes:
        variance_logits: where a step's learned variance lies, from the posterior's own (0) to that of q(x_t | x_s) (1), in logarithms
            and not bounded: Nichol & Dhariwal 2021, eq. 15's v, read by `NoiseProcess.log_variance`. None = not learned.
    """

    x0: Tensor
    eps: Tensor
    variance_logits: Tensor | None = None

    def toward(self, other: Estimate, scale: float) -> Estimate:
        """The point at `scale` on the line from self (0) through other (1); beyond 1 extrapolates. The variance_logits is the other's."""
        x0, eps = (mine + scale * (its - mine) for mine, its in ((self.x0, other.x0), (self.eps, other.eps)))
        return Estimate(x0=x0, eps=eps, variance_logits=other.variance_logits)


Denoise = Callable[[Tensor, Tensor], Estimate]
"""(x_t of (B, ...), t of (B,) in (0, 1] on any device) -> Estimate. Guidance wraps one into another; samplers ask one."""
