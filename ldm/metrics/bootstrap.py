"""Confidence intervals of metrics on few images: the range over other samples of the same size.

By bootstrap (Efron 1979), except for shares.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.core.random import generator

SMALLEST = 10  # for fewer images no interval is given: their own variety says little of other samples
FEW = 5000  # for at least this many images no interval is given: it would be small compared with the differences of interest
LEVEL = 0.95
Z = 1.959964  # a normal variable is within +-Z with that probability
REPLICATES = 200  # of a distance between sets
MEAN_REPLICATES = 1000  # of a mean, which is cheap

Interval = tuple[float, float]


def has_interval(count: int) -> bool:
    """Whether a statistic of so many images is given an interval."""
    return SMALLEST <= count < FEW


def draws(count: int, replicates: int = REPLICATES) -> Tensor:
    """(replicates, count) indices in [0, count), with replacement; always the same for one count, so that differences are paired.

    A draw that repeats one single image has no variance and is drawn again. count is at least 2.
    """
    random = generator("bootstrap", count)
    drawn = torch.randint(count, (replicates, count), generator=random)
    while (constant := (drawn == drawn[:, :1]).all(1)).any():
        drawn[constant] = torch.randint(count, (int(constant.sum()), count), generator=random)
    return drawn


def around(value: float, replicates: Tensor) -> Interval:
    """The interval of a statistic: the percentiles of its replicates (R,), shifted so that their mean is the value.

    A distance between sets grows when images are repeated, as they are in every replicate, so only the replicates' deviations from their
    mean are used. The bias of the value itself, which comes from few images, is not removed.
    """
    low, high = _percentiles(replicates - replicates.mean() + value)
    return low, high


def of_statistic(values: Tensor, statistic: Callable[[Tensor], Tensor]) -> Interval | None:
    """The percentile interval of a statistic of one number per image; None for fewer than SMALLEST or at least FEW.

    Args:
        values: (N,).
        statistic: (R, N) -> (R,), e.g. the mean of each row.
    """
    if not has_interval(len(values)):
        return None
    return _percentiles(statistic(values.double()[draws(len(values), MEAN_REPLICATES)]))


def normal(value: float, standard_error: float) -> Interval:
    """The interval of a statistic with a normal error of known standard deviation."""
    return value - Z * standard_error, value + Z * standard_error


def of_mean(values: Tensor) -> Interval | None:
    """`of_statistic` for the mean."""
    return of_statistic(values, lambda rows: rows.mean(1))


def of_share(share: float, count: int) -> Interval | None:
    """The interval of a share of `count` images (Wilson 1927, eq. 12); None for fewer than SMALLEST or at least FEW.

    Not by bootstrap: if the share is 0 or 1, it is so in every replicate, and the interval would have no width.
    """
    return _wilson(share, count) if has_interval(count) else None


def of_share_with_error(share: float, standard_error: float, count: int) -> Interval | None:
    """`of_share` with a known error: uses the number of independent images that has this error, or `count` if that is not defined."""
    is_usable = standard_error > 0 and 0 < share < 1
    return None if not has_interval(count) else _wilson(share, share * (1 - share) / standard_error**2 if is_usable else count)


def _wilson(share: float, count: float) -> Interval:
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * (share * (1 - share) / count + Z**2 / (4 * count**2)) ** 0.5
    return (centre - half if share > 0 else 0.0), (centre + half if share < 1 else 1.0)


def _percentiles(replicates: Tensor) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(replicates.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
