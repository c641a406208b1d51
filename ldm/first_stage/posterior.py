"""What an encoder says of a latent; here, a Gaussian with its own mean and standard deviation in every dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # as published: a std between 3e-7 and 2.2e4, so that exp stays finite in float32


def full_precision(x: Tensor) -> Tensor:
    """In float32, or wider if it is wider already: what autocast made leaves the networks by this door."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Encoded(Protocol):
    """What training asks of an encoder's word on raw latents (B, C, h, w)."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def std(self) -> Tensor: ...

    def penalties(self, values: int) -> dict[str, Tensor]:
        """(B,) each, by name: what is lowered beside a negative log-likelihood that is a sum over a picture's `values` numbers."""
        ...

    def kl_per_dimension(self) -> Tensor | None:
        """(B, C, h, w) nats against N(0, 1); None = this is no density."""
        ...

    def code_counts(self) -> Tensor | None:
        """(K,) how often each code was chosen; None = there is no codebook."""
        ...


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(log_variance))) over raw latents; see `of` for the published way to make it.

    Attributes:
        mean: (B, C, h, w) float32.
        log_variance: (B, C, h, w) float32, in LOG_VARIANCE_RANGE.
    """

    mean: Tensor
    log_variance: Tensor

    @staticmethod
    def of(parameters: Tensor) -> DiagonalGaussian:
        """From a network's output (B, 2C, h, w): means first, then log-variances, which are clamped. In float32 at least."""
        mean, log_variance = full_precision(parameters).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    @property
    def std(self) -> Tensor:
        """(B, C, h, w), positive."""
        return torch.exp(0.5 * self.log_variance)

    def sample(self, noise: Tensor) -> Tensor:
        """Mean + std * noise, differentiable in both; noise (B, C, h, w) of N(0, 1)."""
        return self.mean + self.std * noise.to(self.mean)

    def kl_per_dimension(self) -> Tensor:
        """(B, C, h, w) nats: KL of each dimension against N(0, 1)."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance)

    def kl(self) -> Tensor:
        """(B,) nats: KL against N(0, 1), summed over a sample's dimensions."""
        return self.kl_per_dimension().flatten(1).sum(1)

    def penalties(self, values: int) -> dict[str, Tensor]:
        """The KL, itself a sum."""
        return {"kl": self.kl()}

    def code_counts(self) -> None:
        """There is no codebook."""

    def nll(self, raw_latent: Tensor) -> Tensor:
        """(B,) nats: negative log-density of (B, C, h, w), summed over a sample's dimensions."""
        distance = (raw_latent - self.mean).square() * torch.exp(-self.log_variance)
        return 0.5 * (math.log(2 * math.pi) + self.log_variance + distance).flatten(1).sum(1)
