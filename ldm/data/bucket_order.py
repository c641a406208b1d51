"""Which samples a step reads where each batch is of one bucket: a pure function of the step, without memory, as `ldm.data.order` is.

Steps are counted in rounds, in each of which about every sample is read once. With batches of B, bucket b of n_b samples has
floor((r + 1) n_b / B) - floor(r n_b / B) batches in round r: over the rounds each bucket gets its share, no sample is left out, and a
bucket smaller than a batch has one in some rounds only. The batches of a round are permuted by (seed, round), and each reads the next B
places of its own bucket's endless order.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from ldm.core.random import digest
from ldm.data.order import ROUNDS, GlobalOrder, permuted


class BucketOrder:
    """See above; each bucket has a `GlobalOrder` of its own, so that an epoch is one pass over a bucket."""

    def __init__(self, bucket_of: np.ndarray, batch_size: int, seed: int) -> None:
        """
        Args:
            bucket_of: (N,) the bucket of each sample.
            batch_size: of the global batch.
            seed: of everything.
        """
        self.batch_size, self.seed = batch_size, seed
        there = np.unique(bucket_of).tolist()
        self._members = [np.flatnonzero(bucket_of == bucket).astype(np.int32) for bucket in there]
        self._orders = [
            GlobalOrder(len(members), batch_size, digest(seed, "bucket", bucket))
            for bucket, members in zip(there, self._members, strict=True)
        ]

    def _batches(self, rounds: int) -> list[int]:
        """Of each bucket in the first so many rounds."""
        return [rounds * len(members) // self.batch_size for members in self._members]

    def _round_of(self, step: int) -> int:
        """The round, from 0, that a step is in."""
        below, above = 0, 1
        while sum(self._batches(above)) < step:
            below, above = above, 2 * above
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if sum(self._batches(middle)) < step else (below, middle)
        return below

    def indices(self, step: int) -> list[tuple[int, int]]:
        """(index, epoch) of each sample of the global batch of a step, steps counted from 1; all of one bucket."""
        number = self._round_of(step)
        before, after = self._batches(number), self._batches(number + 1)
        place = step - 1 - sum(before)
        keys = [digest(self.seed, "buckets", number, key) for key in range(ROUNDS)]
        chosen = int(permuted(np.array([place]), sum(after) - sum(before), keys)[0])
        ends = list(accumulate(late - early for early, late in zip(before, after, strict=True)))
        bucket = int(np.searchsorted(ends, chosen, side="right"))
        batch = after[bucket] - ends[bucket] + chosen  # of all that the bucket ever has
        return [(int(self._members[bucket][index]), epoch) for index, epoch in self._orders[bucket].indices(batch + 1)]

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last of its round."""
        return sum(self._batches(self._round_of(step) + 1)) == step
