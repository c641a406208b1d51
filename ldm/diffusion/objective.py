"""The second stage's loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ldm.core.condition import Condition
from ldm.core.errors import UserError, unknown
from ldm.core.random import Streams
from ldm.core.shapes import over
from ldm.diffusion import bound
from ldm.diffusion.denoiser import Network, split_variance
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.network_input import EDMInput, NetworkInput, TableIndex
from ldm.diffusion.prediction import EDMPrediction, Prediction
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.time_density import Draws, UniformSteps
from ldm.diffusion.weighting import Constant, EDMWeighting, Weighting

LOSSES = ("l2", "l1", "vlb")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Weighted error of the output at a random time, or the variational bound.

    Attributes:
        loss: `l2`: weight * error^2; `l1`: sqrt(weight) * |error|. Either is the norm of the same weighted error. `vlb`: the chain's
            variational bound without L_T, in bits/dim, estimated from the one term drawn; it has its own weights.
        learned_variance: the network also outputs variance logits, see `split_variance`.
        vlb_weight: factor of the bound that is added to `l2` or `l1` to train the variance; the bound's gradient in the mean is stopped
            (Nichol & Dhariwal 2021, eq. 16; theirs is 0.001). None = not added.
        levels: number of levels of the data, from -1 to 1, for the bound's L_0; None = continuous, as latents are.

    Raises:
        UserError: parts that do not fit together; the message says why.
    """

    process: NoiseProcess
    prediction: Prediction
    weighting: Weighting = Constant()
    density: Draws = UniformSteps()
    network_input: NetworkInput = TableIndex()
    loss: Literal["l2", "l1", "vlb"] = "l2"
    learned_variance: bool = False
    vlb_weight: float | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        self.prediction.check(self.process)
        self.network_input.check(self.process)
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        self._check_bound()
        self._check_weights()

    def _check_bound(self) -> None:
        has_bound = self.loss == "vlb" or self.vlb_weight is not None
        if self.learned_variance and not has_bound:
            raise UserError("learned_variance has no loss term: set vlb_weight (0.001), or loss to vlb")
        if self.loss == "vlb" and self.vlb_weight is not None:
            raise UserError("vlb_weight adds the bound to l2 or l1; loss is vlb already: leave vlb_weight null")
        if self.vlb_weight is not None and not self.learned_variance:
            raise UserError("vlb_weight trains only the variance: set learned_variance to true, or loss to vlb")
        if self.vlb_weight is not None and not self.vlb_weight > 0:
            raise UserError(f"vlb_weight must be above 0, or null for none, got {self.vlb_weight}")
        if self.loss == "vlb" and self.weighting != Constant():
            raise UserError("the bound has its own weights: with loss vlb, set weighting to constant")
        if has_bound and not self.density.on_chain:
            raise UserError("the bound is a sum over the chain's steps: set density to uniform or importance")

    def _check_weights(self) -> None:
        t = torch.tensor(self.process.t_last, dtype=torch.float64)
        if self._weight(t) == 0:
            raise UserError(
                f"weighting {self.weighting.kind!r} is 0 at zero SNR (zero_terminal_snr, rectified_flow), where sampling starts: "
                "use 'constant', 'edm', or 'min_snr' without as_published"
            )
        edm = (EDMPrediction, EDMInput, EDMWeighting)
        values = {part.sigma_data for part in (self.prediction, self.network_input, self.weighting) if isinstance(part, edm)}
        if len(values) > 1:
            raise UserError(f"prediction, network_input and weighting must share one sigma_data, got {', '.join(map(str, sorted(values)))}")

    def __call__(self, network: Network, x0: Tensor, condition: Condition, streams: Streams) -> Tensor:
        """The loss of each sample, (B, ...) -> (B,), float32; times and noise are drawn from `streams` under "time" and "noise"."""
        x0 = x0.float()
        t = self.density.draw(streams, self.process)
        eps = streams.normal("noise", x0.shape[1:], x0.device)
        x_t = self.process.blend(Estimate(x0=x0, eps=eps), t)

        output = network(*self.network_input(x_t, t, self.process), condition).float()
        mean, variance_logits = split_variance(output, x_t, self.learned_variance)
        if self.loss == "vlb":
            loss = self._bound(mean, variance_logits, x0, x_t, t)
        else:
            target = self.prediction.target(x0, eps, *self.process.scales(t, x0))
            error = over(self._weight(t).sqrt().to(x0.dtype), x0) * (mean - target)
            loss = (error.square() if self.loss == "l2" else error.abs()).flatten(1).mean(1)
        if self.vlb_weight is not None:
            loss = loss + self.vlb_weight * self._bound(mean.detach(), variance_logits, x0, x_t, t)
        return loss * over(self.density.weight(t).to(loss.dtype), loss)

    def _weight(self, t: Tensor) -> Tensor:
        """Weight of the output's squared error, float64, of t's shape."""
        gain = self.prediction.x0_gain(self.process.alpha(t), self.process.sigma(t))
        return self.weighting.of_output(self.process.log_snr(t), gain)

    def _bound(self, mean: Tensor, variance_logits: Tensor | None, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """(B,) bits/dim, the bound of the whole chain, estimated from its term at t."""
        n = self.process.num_steps
        s = ((t * n).round() - 1) / n
        estimate = replace(self.prediction.read(mean, x_t, *self.process.scales(t, x_t)), variance_logits=variance_logits)
        return n * bound.term(estimate, x0, s, t, self.process, self.levels)
