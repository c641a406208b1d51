"""The error of a pixel."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ldm.core.errors import unknown

PixelError = Literal["l1", "l2"]


def pixel_error(images: Tensor, reconstruction: Tensor, how: PixelError) -> Tensor:
    """|x - y| or (x - y)^2 of each value, (B, C, H, W) float32.

    Raises:
        UserError: unknown `how`.
    """
    difference = images.float() - reconstruction.float()
    match how:
        case "l1":
            return difference.abs()
        case "l2":
            return difference.square()
    raise unknown("pixel error", how, ("l1", "l2"))


def negative_log_likelihood(error: Tensor, log_variance: Tensor) -> Tensor:
    """(B,): the sum over a sample of error / exp(log_variance) + log_variance, up to a constant that depends on no parameter.

    For l1 this is a Laplace density. For l2 it is a Gaussian one with exp(log_variance) = 2 sigma^2 and, as published, twice the weight on
    the logarithm. It is least at exp(log_variance) = mean error.

    Args:
        error: (B, C, H, W).
        log_variance: (), one for all pixels.
    """
    return (error * (-log_variance).exp() + log_variance).flatten(1).sum(1)
