"""MIND: the sliced Wasserstein distance of two sets of features (Berthet et al. 2026, arXiv 2605.06797).

    3 D / P * sum over P directions u of  W2(u.x, u.y)^2

In one dimension optimal transport pairs the sorted numbers. Sets of unlike size are cut to the smaller one by chance. Features, directions
and order are torch-fidelity's: set 1 is the generated one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

DIRECTIONS = 1000
SEED = 2020  # torch-fidelity's


class SlicedReference:
    """The set that others are compared with.

    Args:
        features: (M, D).
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def distance(self, features: Tensor) -> float:
        """To a set of features (N, D)."""
        own, reference = self._projected(features)
        return self._scaled(own.sort(0).values, reference)

    def replicates(self, features: Tensor, draws: Tensor, progress: bool = False) -> Tensor:
        """(R,): the distance of each draw (R, n) of the n = min(N, M) rows that `distance` uses; this set is not redrawn."""
        own, reference = self._projected(features)
        bar = tqdm(draws, desc="bootstrap", unit="draw", disable=not progress, leave=False)
        return torch.tensor([self._scaled(own[draw].sort(0).values, reference) for draw in bar], dtype=torch.float64)

    def _projected(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Both sets on the directions, (n, P) each; that of the reference sorted."""
        random = torch.Generator().manual_seed(SEED)
        count = min(len(features), len(self.features))
        own, reference = (_some(rows.float(), count, random) for rows in (features, self.features))
        directions = torch.randn(DIRECTIONS, own.shape[1], generator=random)
        directions /= directions.norm(dim=1, keepdim=True)
        return own @ directions.T, (reference @ directions.T).sort(0).values

    def _scaled(self, one: Tensor, other: Tensor) -> float:
        """Of sorted projections."""
        return 3 * self.features.shape[1] * (one - other).double().square().mean().item()


def _some(rows: Tensor, count: int, random: torch.Generator) -> Tensor:
    """All rows, or so many of them by chance."""
    return rows if len(rows) == count else rows[torch.randperm(len(rows), generator=random)[:count]]
