"""A network with what its output means: the only door from networks to samplers."""

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
"""(x (B, C, H, W) float32, network_time (B,) float32, Condition of B) -> (B, C, H, W), twice the C with a learned variance. Any float."""


def split_variance(output: Tensor, x_t: Tensor, learned_variance: bool) -> tuple[Tensor, Tensor | None]:
    """A network's output, of x_t's shape, and the spread of its learned variance (see Estimate), if it has one.

    They lie in the second half of the channels, as 2 variance_logits - 1, so that -1 to 1 spans what the published code spans.
    """
    mean, variance_logits = output.chunk(2, dim=1) if learned_variance else (output, None)
    assert mean.shape == x_t.shape, f"the network gave {tuple(output.shape)} for {tuple(x_t.shape)}, learned_variance={learned_variance}"
    return mean, None if variance_logits is None else (variance_logits + 1) / 2


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Reads a network's output as an Estimate.

    Gradients, eval mode and autocast are the caller's; outside the network all is in x_t's dtype.

    Attributes:
        learned_variance: the network gives twice the channels, see `split_variance`.

    Raises:
        UserError: the prediction is ill-posed at the process's noisiest time, or the network's network_time has no end there.
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
        """The same, told one condition for good."""

        def denoise(x_t: Tensor, t: Tensor) -> Estimate:
            return self(x_t, t, condition)

        return denoise
