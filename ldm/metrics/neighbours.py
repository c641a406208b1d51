"""Nearest pictures in feature space: what may be memorised, and whether a prompt's picture is found again."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1000  # rows of distances at once


def nearest(features: Tensor, others: Tensor) -> Tensor:
    """(N,): Euclidean distance of each row of (N, D) to the nearest row of (M, D)."""
    others = others.double()
    return torch.cat([_distances(block, others).amin(1) for block in features.double().split(BLOCK)])


def ranks(features: Tensor, wanted: Tensor, others: Tensor, groups: Tensor) -> Tensor:
    """(N,): how far down the list of others, nearest first, the first one of the wanted group stands; 1 = it is the nearest.

    Args:
        features: (N, D).
        wanted: (N,) int64, the group that each looks for; it has at least one member.
        others: (M, D).
        groups: (M,) int64.
    """
    others = others.double()
    found = []
    for block, want in zip(features.double().split(BLOCK), wanted.split(BLOCK), strict=True):
        distances = _distances(block, others)
        right = distances.masked_fill(want[:, None] != groups, torch.inf).amin(1, keepdim=True)
        found.append(1 + (distances < right).sum(1))
    return torch.cat(found)


def _distances(features: Tensor, others: Tensor) -> Tensor:
    # Not by |a|^2 + |b|^2 - 2ab: between equal pictures that is rounding, not zero.
    return torch.cdist(features, others, compute_mode="donot_use_mm_for_euclid_dist")
