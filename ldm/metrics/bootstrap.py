"""Confidence intervals where pictures are few: what another draw of as many would give. By bootstrap (Efron 1979), save for shares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.core.random import generator

FEW = 5000  # from so many pictures on, the spread is small beside what is compared, and no interval is given
LEVEL = 0.95
Z = 1.959964  # a normal variable is within +-Z with that probability
REPLICATES = 200  # of a distance between sets
MEAN_REPLICATES = 1000  # of a mean, which costs nothing

Interval = tuple[float, float]


def draws(count: int, replicates: int = REPLICATES) -> Tensor:
    """(replicates, count) places in [0, count), with replacement; the same for one count, so that differences are paired.

    Draws of one picture alone, which have no spread within, are drawn again. count is at least 2.
    """
    random = generator("bootstrap", count)
    drawn = torch.randint(count, (replicates, count), generator=random)
    while (alone := (drawn == drawn[:, :1]).all(1)).any():
        drawn[alone] = torch.randint(count, (int(alone.sum()), count), generator=random)
    return drawn


def around(value: float, replicates: Tensor) -> Interval:
    """The interval of a statistic by its replicates' (R,) percentiles, moved so that their mean is the value.

    A distance between sets grows when pictures are repeated, as they are in every replicate. Only the replicates' spread says something
    of the value. What few pictures add to it is in the value itself, and stays.
    """
    low, high = _percentiles(replicates - replicates.mean() + value)
    return low, high


def of_statistic(values: Tensor, statistic: Callable[[Tensor], Tensor]) -> Interval | None:
    """The percentile interval of a statistic of one number a picture; None for FEW pictures or more.

    Args:
        values: (N,).
        statistic: (R, N) -> (R,), e.g. the mean of each row.
    """
    if len(values) >= FEW:
        return None
    return _percentiles(statistic(values.double()[draws(len(values), MEAN_REPLICATES)]))


def normal(value: float, standard_error: float) -> Interval:
    """The interval of a statistic whose error is known and normal."""
    return value - Z * standard_error, value + Z * standard_error


def of_mean(values: Tensor) -> Interval | None:
    """`of_statistic` for the mean."""
    return of_statistic(values, lambda rows: rows.mean(1))


def of_share(share: float, count: int) -> Interval | None:
    """The interval of a share of `count` pictures (Wilson 1927, eq. 12); None for FEW pictures or more.

    Not by bootstrap: where no picture was hit, every redrawn set says so too, as if it were certain.
    """
    return None if count >= FEW else _wilson(share, count)


def of_share_with_error(share: float, standard_error: float, count: int) -> Interval | None:
    """`of_share` where the error is known: of as many independent pictures as would err as much; of `count` where it says nothing."""
    says = standard_error > 0 and 0 < share < 1
    return None if count >= FEW else _wilson(share, share * (1 - share) / standard_error**2 if says else count)


def _wilson(share: float, count: float) -> Interval:
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * (share * (1 - share) / count + Z**2 / (4 * count**2)) ** 0.5
    return (centre - half if share > 0 else 0.0), (centre + half if share < 1 else 1.0)


def _percentiles(replicates: Tensor) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(replicates.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
