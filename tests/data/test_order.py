"""The order of samples: pinned, a permutation for every count, another one for every seed and epoch."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from ldm.data.order import ROUNDS, GlobalOrder, permuted

KEYS = list(range(1, ROUNDS + 1))


def epoch_of(count: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    """(count,) an epoch's samples, in order."""
    return np.array([index for index, _ in GlobalOrder(count, count, seed).indices(epoch + 1)])


def test_the_order_is_pinned() -> None:
    """A run that resumes on another machine, or by a later release, goes on with these very samples."""
    assert GlobalOrder(10, 4, seed=0).indices(1) == [(9, 0), (7, 0), (1, 0), (3, 0)]
    assert [index for index, _ in GlobalOrder(10_000_000, 4, seed=7).indices(3_000_001)] == [3858486, 8310632, 7091103, 2980125]


@pytest.mark.parametrize("count", [*range(1, 40), 97, 100, 101, 1000, 1023, 1024, 1025, 12_345])
def test_it_is_a_permutation_of_any_count(count: int) -> None:
    assert np.array_equal(np.sort(permuted(np.arange(count), count, KEYS)), np.arange(count))


def test_all_permutations_of_few_samples_are_equally_frequent() -> None:
    """Chi-squared within 4 standard deviations of its mean."""
    epochs = 2400
    for count in (2, 3, 4, 5):
        expected = epochs / math.factorial(count)
        seen = Counter(tuple(epoch_of(count, epoch=epoch).tolist()) for epoch in range(epochs))
        freedom = math.factorial(count) - 1
        chi_squared = sum((seen[one] - expected) ** 2 / expected for one in permutations(range(count)))
        assert abs(chi_squared - freedom) < 4 * math.sqrt(2 * freedom), count


def test_seeds_and_epochs_are_independent_and_neighbours_are_not_kept() -> None:
    """Ranks correlate by at most 4 / sqrt(count), and of 20,000 steps from place to place about one goes to the next sample."""
    count = 20_000
    drawn = [epoch_of(count, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))]
    for number, one in enumerate(drawn):
        for other in (np.arange(count), *drawn[:number]):
            assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(count)
            assert (one == other).sum() < 8  # Poisson of mean 1
        assert (np.diff(one) == 1).sum() < 8


def test_a_step_needs_no_memory_for_the_other_samples() -> None:
    order = GlobalOrder(10**9, 256, seed=0)
    tracemalloc.start()
    found = order.indices(3 * 10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(found)) == 256 and peak < 1 << 20
