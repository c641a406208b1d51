"""Steps drawn in proportion to their past losses: lowers the gradient noise of the variational bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.core.random import Streams
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.time_density import Draws, TimeDensity, UniformSteps


@kind("importance")
@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceSteps(TimeDensity):
    """Steps of the chain with p proportional to sqrt(E[L_t^2]), each loss divided by N p. Nichol & Dhariwal 2021, sec. 3.3.

    Uniform until every step has been drawn `history` times.

    Attributes:
        history: how many of a step's latest losses are kept.
        even_share: fraction of the draws that stays uniform, so that every step is still drawn.
    """

    history: int = 10
    even_share: float = 0.001
    on_chain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.history < 1:
            raise UserError(f"density importance needs history >= 1, got {self.history}")
        if not 0 < self.even_share <= 1:
            raise UserError(f"density importance needs 0 < even_share <= 1, got {self.even_share}")

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        """Without any recorded losses: uniform."""
        return UniformSteps().draw(streams, process)

    def begin(self, process: NoiseProcess) -> Draws:
        return LossMemory(self, process.num_steps)


class LossMemory(nn.Module):
    """The recorded losses of an importance density. Its buffers are training state: saving them makes the draws after a resume the same.

    Only `learn` changes it, once per training step with the whole global batch, so all processes hold the same values.
    """

    on_chain = True
    losses: Tensor  # (N, history) of each step, the newest last
    seen: Tensor  # (N,) how many of them are recorded

    def __init__(self, density: ImportanceSteps, num_steps: int) -> None:
        super().__init__()
        self.density = density
        self.register_buffer("losses", torch.zeros(num_steps, density.history, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(num_steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """(N,) of steps 1 to N, float64."""
        n, history = self.losses.shape
        even = torch.full((n,), 1 / n, dtype=torch.float64)
        if (self.seen < history).any():
            return even
        size = self.losses.square().mean(1).sqrt()
        return self.density.even_share * even + (1 - self.density.even_share) * size / size.sum()

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        edges = self.probabilities().cumsum(0)
        place = streams.uniform("time").double() * edges[-1]
        return (torch.searchsorted(edges, place, right=True) + 1).clamp(max=len(edges)) / len(edges)

    def weight(self, t: Tensor) -> Tensor:
        return 1 / (len(self.seen) * self.probabilities()[self._index(t)])

    def learn(
        self, losses: Tensor, streams: Streams, process: NoiseProcess, batch_size: int, sum_over_processes: Callable[[list[Tensor]], None]
    ) -> None:
        """Records the losses of a training step.

        Args:
            losses: (B,), already multiplied by `weight`, of this process's part of the global batch.
            streams: those that the losses' times were drawn with; the samples' keys are their indices in the global batch.
            process: the one that the times were drawn with.
            batch_size: global.
            sum_over_processes: sums tensors over all processes, in place.
        """
        t = self.draw(streams, process)  # the loss's times again, as nothing was recorded in between
        everyone = torch.zeros(2, batch_size, device=losses.device)
        everyone[:, list(streams.samples)] = torch.stack([t, losses.cpu() / self.weight(t)]).to(everyone)
        sum_over_processes([everyone])
        self.record(*everyone.cpu())

    def record(self, t: Tensor, loss: Tensor) -> None:
        """Records losses (B,), not multiplied by `weight`, at times (B,), in this order."""
        for i, value in zip(self._index(t).tolist(), loss.tolist(), strict=True):
            self.losses[i] = self.losses[i].roll(-1)
            self.losses[i, -1] = value
            self.seen[i] = min(int(self.seen[i]) + 1, self.density.history)

    def _index(self, t: Tensor) -> Tensor:
        return (t.double() * len(self.seen)).round().long() - 1
