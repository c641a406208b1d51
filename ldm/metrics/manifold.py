"""Improved precision and recall (Kynkaanniemi et al. 2019): a set is taken as the balls that reach to each picture's k-th neighbour."""

from __future__ import annotations

from torch import Tensor
from torch_fidelity.metric_prc import calculate_precision_recall_part

NEIGHBOURS = 3
BLOCK = 1000  # rows of distances at once
SMALLEST = NEIGHBOURS + 1  # pictures: fewer have no k-th neighbour


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Share of the generated within the real set's balls, and share of the real within the generated set's.

    Args:
        generated: (N, D) features, N >= SMALLEST.
        real: (M, D), M >= SMALLEST.
    """
    return calculate_precision_recall_part(generated.double(), real.double(), NEIGHBOURS, BLOCK)
