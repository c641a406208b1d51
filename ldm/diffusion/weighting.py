"""The loss weight of each noise level.

A weighting is w on the squared error of x0. An output error d causes an x0 error of gain * d, so the weight on the output is w gain^2. The
squared gain (see `Prediction.x0_gain`) is 1/snr for eps, 1/(snr + 1) for v if alpha^2 + sigma^2 = 1, and 1 for x0. Errors of the output
stay near 1 at every t, so the loss uses that form.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import Family, kind


class Weighting(Family, abc.ABC):
    """The weight w of the squared x0 error, and the weight of the output's that follows from it."""

    __slots__ = ()

    @abc.abstractmethod
    def of_output(self, log_snr: Tensor, x0_gain: Tensor) -> Tensor:
        """w gain^2: the weight of the output's squared error; of log_snr's shape, finite wherever the prediction is well-posed."""


@kind("constant")
@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(Weighting):
    """1 on the output, so w = gain^-2: the published L_simple for eps, SNR + 1 for v."""

    def of_output(self, log_snr: Tensor, x0_gain: Tensor) -> Tensor:
        return torch.ones_like(log_snr)


@kind("min_snr")
@dataclass(frozen=True, kw_only=True, slots=True)
class MinSNR(Weighting):
    """w = min(max(snr, gain^-2), gamma): the plain loss, with its low-noise steps capped. After Hang et al. 2023, sec. 3.4.

    For eps, gain^-2 = snr and this is theirs: min(snr, gamma), on the output min(1, gamma / snr). For v, theirs on the output is
    min(snr, gamma) / (snr + 1). That is 0 at zero SNR, so the network would not be trained at the time where sampling starts. Here
    gain^-2 = snr + 1 and the weight on the output is min(1, gamma / (snr + 1)), 1 at the noisiest time. For x0 it is
    min(max(snr, 1), gamma): Salimans & Ho's truncated SNR, capped.

    Attributes:
        gamma: the cap.
        as_published: w = min(snr, gamma) for every prediction, which is 0 at zero SNR.
    """

    gamma: float = 5.0
    as_published: bool = False

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"min_snr needs gamma > 0, got {self.gamma}")

    def of_output(self, log_snr: Tensor, x0_gain: Tensor) -> Tensor:
        square = x0_gain.square()
        snr = log_snr.exp()
        return (snr if self.as_published else torch.maximum(snr, 1 / square)).clamp(max=self.gamma) * square


@kind("snr")
@dataclass(frozen=True, kw_only=True, slots=True)
class SNR(Weighting):
    """w = snr: the plain loss of eps, whatever is predicted. Kingma et al. 2021, sec. 5; on the score it is Song et al.'s sigma^2.

    It is 0 at zero SNR.
    """

    def of_output(self, log_snr: Tensor, x0_gain: Tensor) -> Tensor:
        return log_snr.exp() * x0_gain.square()


@kind("sigmoid")
@dataclass(frozen=True, kw_only=True, slots=True)
class Sigmoid(Weighting):
    """w = snr sigmoid(shift - log_snr): the weight of the eps error falls from 1 in noise to 0 near data, around log_snr = shift.

    Kingma & Gao 2023, sec. 4.2 and appendix D.3.2; Hoogeboom et al. 2024. Theirs is per unit of log-SNR: here the density of times
    multiplies it. It is 0 at zero SNR.

    Attributes:
        shift: log-SNR at which the weight of the eps error is 1/2.
    """

    shift: float = 2.0

    def of_output(self, log_snr: Tensor, x0_gain: Tensor) -> Tensor:
        return log_snr.exp() * (self.shift - log_snr).sigmoid() * x0_gain.square()


@kind("edm")
@dataclass(frozen=True, kw_only=True, slots=True)
class EDMWeighting(Weighting):
    """w = snr + 1 / sigma_data^2, which with sigma for sigma / alpha is (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.

    Karras et al. 2022, table 1. For data of standard deviation sigma_data; 1 on the output of the prediction of the same name.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise UserError(f"weighting edm needs sigma_data > 0, got {self.sigma_data}")

    def of_output(self, log_snr: Tensor, x0_gain: Tensor) -> Tensor:
        return (log_snr.exp() + self.sigma_data**-2) * x0_gain.square()
