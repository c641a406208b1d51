"""The second stage's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ldm.core.condition import Condition
from ldm.core.errors import unknown
from ldm.core.random import Streams
from ldm.core.shapes import over
from ldm.diffusion.denoiser import Network
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.network_input import NetworkInput, TableIndex
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.time_density import TimeDensity, UniformSteps
from ldm.diffusion.weighting import Constant, Weighting

LOSSES = ("l2", "l1")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Weighted error of the output at a random time.

    Attributes:
        loss: `l2`: weight * error^2; `l1`: sqrt(weight) * |error|. Either is the norm of the same weighted error.

    Raises:
        UserError: the prediction is ill-posed at the process's noisiest time, or the loss is unknown.
    """

    process: NoiseProcess
    prediction: Prediction
    weighting: Weighting = Constant()
    density: TimeDensity = UniformSteps()
    network_input: NetworkInput = TableIndex()
    loss: Literal["l2", "l1"] = "l2"

    def __post_init__(self) -> None:
        self.prediction.check(self.process)
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)

    def __call__(self, network: Network, x0: Tensor, condition: Condition, streams: Streams) -> Tensor:
        """One number a sample, (B, ...) -> (B,), float32; times and noise are drawn from `streams` under "time" and "noise"."""
        x0 = x0.float()
        t = self.density.draw(streams, self.process)
        eps = streams.normal("noise", x0.shape[1:]).to(x0.device)
        x_t = self.process.blend(Estimate(x0=x0, eps=eps), t)

        output = network(*self.network_input(x_t, t, self.process), condition).float()
        target = self.prediction.target(x0, eps, *self.process.scales(t, x0))

        gain = self.prediction.x0_gain(self.process.alpha(t), self.process.sigma(t))
        root = self.weighting.of_output(self.process.log_snr(t), gain).sqrt()
        error = over(root.to(x0.dtype), x0) * (output - target)
        return (error.square() if self.loss == "l2" else error.abs()).flatten(1).mean(1)
