"""What a denoiser says of a noisy sample, whatever its network predicts: both ends of x_t = alpha x0 + sigma eps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """The expected clean sample and the expected noise; both of x_t's shape."""

    x0: Tensor
    eps: Tensor

    def toward(self, other: Estimate, scale: float) -> Estimate:
        """The point at `scale` on the line from self (0) through other (1); beyond 1 extrapolates."""
        return Estimate(x0=self.x0 + scale * (other.x0 - self.x0), eps=self.eps + scale * (other.eps - self.eps))


Denoise = Callable[[Tensor, Tensor], Estimate]
"""(x_t of (B, ...), t of (B,) in (0, 1] on any device) -> Estimate. Guidance wraps one into another; samplers ask one."""
