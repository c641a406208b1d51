"""The random numbers of training steps, made one step ahead by a thread beside the one that trains, where there is no GPU to make them.

What a step draws is a function of the seed, its number and a name, and step after step draws the same names and shapes. So while one step
is computed, what it has drawn is made for the next. A draw that was not foreseen is made when it is asked for: the numbers are the same.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from ldm.core.random import Draw, Streams


class StepDraws:
    """
    Args:
        seed: of all draws.
        device: of the training; a GPU makes draws by kernels of its own, which nobody waits for.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.is_ahead = seed, device.type == "cpu"
        self._thread: ThreadPoolExecutor | None = None
        self._step = 0
        self._made: dict[Draw, Future[Tensor]] = {}

    def streams(self, step: int, samples: tuple[int, ...]) -> Streams:
        """Those of a training step. What was made ahead and is not asked for is forgotten."""
        names = (self.seed, "train", step)
        if not self.is_ahead:
            return Streams(names, samples)
        foreseen, self._made, self._step = self._made, {}, step

        def made(draw: Draw) -> Tensor:
            numbers = foreseen.pop(draw, None)
            self._foresee(draw)
            return draw.make() if numbers is None else numbers.result()

        return Streams(names, samples, made)

    def _foresee(self, draw: Draw) -> None:
        """Has the same made for the next step."""
        following = replace(draw, names=(self.seed, "train", self._step + 1, *draw.names[3:]))
        if following in self._made:
            return
        self._thread = self._thread or ThreadPoolExecutor(1, "draws")
        self._made[following] = self._thread.submit(following.make)
