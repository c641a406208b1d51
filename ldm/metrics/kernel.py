"""KID: the squared maximum mean discrepancy of two sets of features, with the kernel (a.b / D + 1)^3 (Binkowski et al. 2018, sec. 4).

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

The estimate is unbiased for any number of images, and so may be below zero. It uses all images at once, not subsets.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm import tqdm

BLOCK = 2048  # rows of the kernel's matrix at once


class KernelReference:
    """The set that others are compared with.

    Args:
        features: (M, D), M >= 2.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features.double()
        self._within = _within(self.features)

    def distance(self, features: Tensor) -> float:
        """MMD^2 to a set of features (N, D), N >= 2."""
        features = features.double()
        return (_within(features) + self._within - 2 * self._across(features).mean()).item()

    def replicates(self, features: Tensor, draws: Tensor) -> Tensor:
        """(R,): MMD^2 of each draw (R, N) of the rows of features (N, D) to this set, which is not redrawn.

        An image that is drawn twice is never compared with itself, so the replicates are unbiased too.
        """
        features = features.double()
        kernel = _kernel(features, features).fill_diagonal_(0)
        count = draws.shape[1]
        times = torch.zeros(len(draws), count, dtype=torch.float64).scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
        within = ((times @ kernel) * times).sum(1) / (count**2 - times.square().sum(1))
        return within + self._within - 2 * (times @ self._across(features)) / count

    def standard_error(self, features: Tensor) -> float:
        """Standard error of `distance` for features (N, D) as a random sample and this set as fixed, for large N.

        2 std(h) / sqrt(N), where h of a row is its mean kernel with the other rows minus that with this set: the linear part of a
        U-statistic (Hoeffding 1948). It needs no replicates, so no N x N kernel is stored.
        """
        features = features.double()
        h = _to_others(features) - self._across(features)
        error: float = (2 * h.std() / len(features) ** 0.5).item()
        return error

    def _across(self, features: Tensor) -> Tensor:
        """(N,): mean kernel of each row with this set."""
        return torch.cat([_kernel(block, self.features).mean(1) for block in _blocks(features)])


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) of the rows of a (N, D) and b (M, D)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def _within(features: Tensor) -> Tensor:
    """Mean kernel between different rows."""
    return _to_others(features).mean()


def _to_others(features: Tensor) -> Tensor:
    """(N,): mean kernel of each row with the others."""
    total = torch.cat([_kernel(block, features).sum(1) for block in _blocks(features)])
    itself = (features.square().sum(1) / features.shape[1] + 1) ** 3
    return (total - itself) / (len(features) - 1)


def _blocks(features: Tensor) -> Iterable[Tensor]:
    return tqdm(features.split(BLOCK), desc="KID", unit="block", delay=1, dynamic_ncols=True)
