"""Which samples a step reads: a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

from functools import lru_cache

import torch

from ldm.core.random import generator


class GlobalOrder:
    """Epoch after epoch, each a new permutation keyed by (seed, epoch), cut into global batches without regard to where epochs end."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._permutation = lru_cache(maxsize=2)(self._drawn)

    def __reduce__(self) -> tuple[type[GlobalOrder], tuple[int, int, int]]:
        """For worker processes that do not share this one's memory: a cache cannot be sent."""
        return GlobalOrder, (self.count, self.batch_size, self.seed)

    def _drawn(self, epoch: int) -> list[int]:
        return torch.randperm(self.count, generator=generator(self.seed, "order", epoch)).tolist()

    def indices(self, step: int) -> list[tuple[int, int]]:
        """(index, epoch) of each sample of the global batch of a step, steps counted from 1."""
        first = (step - 1) * self.batch_size
        places = (divmod(place, self.count) for place in range(first, first + self.batch_size))
        return [(self._permutation(epoch)[offset], epoch) for epoch, offset in places]

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch's last sample is in the global batch of a step."""
        return step * self.batch_size // self.count > (step - 1) * self.batch_size // self.count
