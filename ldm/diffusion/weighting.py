"""How much each noise level counts.

A weighting is w on the squared error of x0. An output error d makes an x0 error of gain * d, so on the output it is w gain^2 (the gain is
`Prediction.x0_gain`): 1/snr for eps, 1/(snr + 1) for v, 1 for x0. Errors of the output stay near 1 at every t, so the loss uses that form.
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
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"min_snr needs gamma > 0, got {self.gamma}")

    def of_output(self, log_snr: Tensor, x0_gain: Tensor) -> Tensor:
        square = x0_gain.square()
        return torch.maximum(log_snr.exp(), 1 / square).clamp(max=self.gamma) * square
