"""Variables to take a step in: y = x / c(t) as a function of u(t), with the slope dy/du given by the estimate's x0 and eps.

No frame needs a derivative of the schedule. As x_t = alpha x0 + sigma eps, a straight step is the same in both frames, and is DDIM's. Steps
of higher order (Heun's) differ.
"""

from __future__ import annotations

import abc
from typing import ClassVar

from torch import Tensor

from ldm.core.errors import UserError
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.process import NoiseProcess


class Frame(abc.ABC):
    """c, u and dy/du."""

    needs_signal: ClassVar[bool] = False

    @abc.abstractmethod
    def scale(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """c."""

    @abc.abstractmethod
    def position(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """u, which grows with noise; 0 at t = 0."""

    @abc.abstractmethod
    def slope(self, estimate: Estimate) -> Tensor:
        """dy/du."""

    def check(self, process: NoiseProcess, grid: Tensor) -> None:
        """Raises UserError if c or u is singular at the start."""
        if self.needs_signal and process.alpha(grid[0]) == 0:
            raise UserError("frame `ratio` cannot start at zero SNR, as this process does at its noisiest time: use frame `flow`")

    def move(self, x_t: Tensor, t: Tensor, s: Tensor, slope: Tensor, process: NoiseProcess) -> Tensor:
        """A straight step from t to s: y_s = y_t + (u_s - u_t) slope."""
        c_t, c_s = self.scale(process, t), self.scale(process, s)
        return c_s / c_t * x_t + c_s * (self.position(process, s) - self.position(process, t)) * slope


class Flow(Frame):
    """c = alpha + sigma, u = sigma / (alpha + sigma), in [0, 1]: every process as a rectified flow. Never singular."""

    def scale(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return process.alpha(t) + process.sigma(t)

    def position(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return process.noise_share(t)

    def slope(self, estimate: Estimate) -> Tensor:
        return estimate.eps - estimate.x0


class Ratio(Frame):
    """c = alpha, u = sigma / alpha, as in Karras et al. 2022: every process as a variance-exploding one. Singular at alpha = 0."""

    needs_signal: ClassVar[bool] = True

    def scale(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return process.alpha(t)

    def position(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return process.sigma(t) / process.alpha(t)

    def slope(self, estimate: Estimate) -> Tensor:
        return estimate.eps


FLOW, RATIO = Flow(), Ratio()
FRAMES: dict[str, Frame] = {"flow": FLOW, "ratio": RATIO}
