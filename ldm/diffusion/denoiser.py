"""A network together with the meaning of its output: the only path from networks to samplers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ldm.core.condition import Condition
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.network_input import NetworkInput, TableIndex
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.process import NoiseProcess

Network = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x (B, C, H, W) float32, network_time (B,) float32, Condition of B) -> (B, C, H, W) of any float dtype; 2 C with a learned variance."""


def split_variance(output: Tensor, x_t: Tensor, learned_variance: bool) -> tuple[Tensor, Tensor | None]:
    """A network's output, of x_t's shape, and its variance logits (see Estimate) if the variance is learned.

    The second half of the channels is 2 variance_logits - 1, so its range from -1 to 1 is that of the published code.
    """
    mean, variance_logits = output.chunk(2, dim=1) if learned_variance else (output, None)
    assert mean.shape == x_t.shape, f"the network gave {tuple(output.shape)} for {tuple(x_t.shape)}, learned_variance={learned_variance}"
    return mean, None if variance_logits is None else (variance_logits + 1) / 2


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Reads a network's output as an Estimate.

    The caller decides on gradients, eval mode and autocast. Outside the network everything is computed in x_t's dtype.

    Attributes:
        learned_variance: the network outputs twice the channels, see `split_variance`.

    Raises:
        UserError: the prediction is ill-posed or the network_time is infinite at the process's noisiest time.
    """

    network: Network
    process: NoiseProcess
    prediction: Prediction
    network_input: NetworkInput = TableIndex()
    learned_variance: bool = False

    def __post_init__(self) -> None:
        self.prediction.check(self.process)
        self.network_input.check(self.process)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """x_t (B, ...), t (B,) on any device, condition of B."""
        output = self.network(*self.network_input(x_t, t, self.process), condition).to(x_t.dtype)
        mean, variance_logits = split_variance(output, x_t, self.learned_variance)
        return replace(self.prediction.read(mean, x_t, *self.process.scales(t, x_t)), variance_logits=variance_logits)

    def bind(self, condition: Condition) -> Denoise:
        """This denoiser with its condition fixed."""

        def denoise(x_t: Tensor, t: Tensor) -> Estimate:
            return self(x_t, t, condition)

        return denoise
