"""Nearest images in feature space: for finding memorised images, for the rank of a prompt's own image, and for what lies between two."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm import tqdm

BLOCK = 100  # rows of distances at once


def nearest(features: Tensor, others: Tensor) -> Tensor:
    """(N,): Euclidean distance of each row of (N, D) to the nearest row of (M, D)."""
    others = others.double()
    return torch.cat([_distances(block, others).amin(1) for block in _blocks(features)])


def ranks(features: Tensor, wanted: Tensor, others: Tensor, groups: Tensor) -> Tensor:
    """(N,): rank, among the others sorted by distance, of the first one of the wanted group; 1 = it is the nearest.

    Args:
        features: (N, D).
        wanted: (N,) int64, the wanted group of each row; it has at least one member.
        others: (M, D).
        groups: (M,) int64.
    """
    others = others.double()
    found = []
    for block, want in zip(_blocks(features), wanted.split(BLOCK), strict=True):
        distances = _distances(block, others)
        right = distances.masked_fill(want[:, None] != groups, torch.inf).amin(1, keepdim=True)
        found.append(1 + (distances < right).sum(1))
    return torch.cat(found)


def midpoints(latents: Tensor) -> Tensor:
    """(N, ...): half-way between each row and the nearest other one, by Euclidean distance; N >= 2."""
    rows = latents.flatten(1)
    squares = rows.square().sum(1)
    found = []
    for first in range(0, len(rows), BLOCK):
        distances = squares - 2 * rows[first : first + BLOCK] @ rows.T  # up to each row's own square
        own = torch.arange(len(distances))
        distances[own, first + own] = torch.inf
        found.append(distances.argmin(1))
    return (latents + latents[torch.cat(found)]) / 2


def chance(wanted: Tensor, groups: Tensor, top: int) -> float:
    """The expected share of `ranks` up to `top` for a random order of the others: 1 - C(M - m, top) / C(M, top), for a group of m among M.

    Args:
        wanted, groups: as for `ranks`.
        top: 1 or more.
    """
    others = len(groups)
    members = (wanted[:, None] == groups).sum(1).double()
    missed = torch.ones_like(members)
    for place in range(min(top, others)):
        missed *= ((others - members - place) / (others - place)).clamp(min=0)
    return (1 - missed).mean().item()


def _blocks(features: Tensor) -> Iterable[Tensor]:
    return tqdm(features.double().split(BLOCK), desc="nearest pictures", unit="block", delay=1, dynamic_ncols=True)


def _distances(features: Tensor, others: Tensor) -> Tensor:
    # Not by |a|^2 + |b|^2 - 2ab, which rounding makes nonzero for equal images.
    return torch.cdist(features, others, compute_mode="donot_use_mm_for_euclid_dist")
