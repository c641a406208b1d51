"""How much each noise level counts.

A weighting is w on the squared error of x0. An output error d makes an x0 error of gain * d, so on the output it is w gain^2 (the gain is
`Prediction.x0_gain`): 1/snr for eps, 1/(snr + 1) for v where alpha^2 + sigma^2 = 1, 1 for x0. Errors of the output stay near 1 at every
t, so the loss uses that form.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import Family, kind


class Weighting(Family, abc.ABC):
    """w of the x0 error, carried over to the output."""

    __slots__ = ()

    @abc.abstractmethod
    def of_output(self, log_snr: Tensor, x0_gain: Tensor) -> Tensor:
        """w gain^2: the weight of the output's squared error; of log_snr's shape, finite wherever the prediction is well-posed."""


@kind("constant")
@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(Weighting):
    """1 in the prediction's own space, w = gain^-2: the published L_simple for eps, SNR + 1 for v."""

    def of_output(self, log_snr: Tensor, x0_gain: Tensor) -> Tensor:
        return torch.ones_like(log_snr)


@kind("min_snr")
@dataclass(frozen=True, kw_only=True, slots=True)
class MinSNR(Weighting):
    """w = min(max(snr, gain^-2), gamma): the plain loss, with its low-noise steps capped. After Hang et al. 2023, sec. 3.4.

    For eps, gain^-2 = snr and this is theirs, min(snr, gamma), on the output min(1, gamma / snr). For v their min(snr, gamma) / (snr + 1)
    gives the noisiest step no weight when the terminal SNR is zero, so the network is never taught where sampling starts; here
    gain^-2 = snr + 1 and the weight on the output is min(1, gamma / (snr + 1)), 1 at the noisiest. For x0 it is min(max(snr, 1), gamma):
    Salimans & Ho's truncated SNR, capped.

    Attributes:
        gamma: the cap.
        as_published: w = min(snr, gamma) for every prediction, which weighs nothing where no signal is left.
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

    Where no signal is left it weighs nothing.
    """

    def of_output(self, log_snr: Tensor, x0_gain: Tensor) -> Tensor:
        return log_snr.exp() * x0_gain.square()


@kind("sigmoid")
@dataclass(frozen=True, kw_only=True, slots=True)
class Sigmoid(Weighting):
    """w = snr sigmoid(shift - log_snr): on the error of eps a step down, from 1 in noise to 0 near data, at log_snr = shift.

    Kingma & Gao 2023, sec. 4.2 and appendix D.3.2; Hoogeboom et al. 2024. Theirs is per unit of log-SNR: here the density of times
    multiplies it. Where no signal is left it weighs nothing.

    Attributes:
        shift: log-SNR at which half the weight is left.
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
