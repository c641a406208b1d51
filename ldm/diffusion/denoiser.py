"""A network with what its output means: the only door from networks to samplers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ldm.core.condition import Condition
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.network_input import NetworkInput, TableIndex
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.process import NoiseProcess

Network = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x (B, C, H, W) float32, clock (B,) float32, Condition of B) -> (B, C, H, W) of any float dtype."""


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Reads a network's output as an Estimate.

    Gradients, eval mode and autocast are the caller's; outside the network all is in x_t's dtype.

    Raises:
        UserError: the prediction is ill-posed at the process's noisiest time.
    """

    network: Network
    process: NoiseProcess
    prediction: Prediction
    network_input: NetworkInput = TableIndex()

    def __post_init__(self) -> None:
        self.prediction.check(self.process)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """x_t (B, ...), t (B,) on any device, condition of B."""
        output = self.network(*self.network_input(x_t, t, self.process), condition).to(x_t.dtype)
        return self.prediction.read(output, x_t, *self.process.scales(t, x_t))

    def bind(self, condition: Condition) -> Denoise:
        """The same, told one condition for good."""

        def denoise(x_t: Tensor, t: Tensor) -> Estimate:
            return self(x_t, t, condition)

        return denoise
