"""An encoder's distribution over latents: its interface, and the diagonal Gaussian of KL autoencoders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # as published: a std between 3e-7 and 2.2e4, so that exp stays finite in float32


def full_precision(x: Tensor) -> Tensor:
    """In float32, or wider if it is wider already. Networks return their outputs through it, so none is in autocast's half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Encoded(Protocol):
    """An encoder's output as training needs it: the distribution of raw latents (B, C, h, w)."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def std(self) -> Tensor: ...

    def sample(self, noise: Tensor) -> Tensor:
        """A raw latent (B, C, h, w), drawn with noise of N(0, 1) if it is random, with its gradient."""
        ...

    def penalties(self, values: int) -> dict[str, Tensor]:
        """(B,) each, by name: terms of the loss beside a negative log-likelihood that is a sum over an image's `values` numbers."""
        ...

    def kl_per_dimension(self) -> Tensor | None:
        """(B, C, h, w) nats: KL against N(0, 1); None = the encoder gives no density."""
        ...

    def code_counts(self) -> Tensor | None:
        """(K,): how often each code was chosen; None = there is no codebook."""
        ...


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(log_variance))) over raw latents. `of` makes it as published.

    Attributes:
        mean: (B, C, h, w) float32.
        log_variance: (B, C, h, w) float32, in LOG_VARIANCE_RANGE.
    """

    mean: Tensor
    log_variance: Tensor

    @staticmethod
    def of(parameters: Tensor) -> DiagonalGaussian:
        """From a network's output (B, 2C, h, w): means first, then log-variances, which are clamped. Float32 or wider."""
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
        """The KL; it is a sum already, so `values` is unused."""
        return {"kl": self.kl()}

    def code_counts(self) -> None:
        """None: there is no codebook."""

    def nll(self, raw_latent: Tensor) -> Tensor:
        """(B,) nats: negative log-density of (B, C, h, w), summed over a sample's dimensions."""
        distance = (raw_latent - self.mean).square() * torch.exp(-self.log_variance)
        return 0.5 * (math.log(2 * math.pi) + self.log_variance + distance).flatten(1).sum(1)
