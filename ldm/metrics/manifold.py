"""Improved precision and recall (Kynkaanniemi et al. 2019): a set is taken as the balls that reach to each picture's k-th neighbour."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

NEIGHBOURS = 3
BLOCK = 1000  # rows of distances at once
SMALLEST = NEIGHBOURS + 1  # pictures: fewer have no k-th neighbour
GROUPS = 20  # of generated pictures, left out in turn


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Share of the generated within the real set's balls, and share of the real within the generated set's.

    Args:
        generated: (N, D) features, N >= SMALLEST.
        real: (M, D), M >= SMALLEST.
    """
    generated, real = generated.double(), real.double()
    return _share_within(generated, real), _share_within(real, generated)


def _share_within(points: Tensor, others: Tensor) -> float:
    """Of the points (N, D), how many lie in a ball of the others (M, D)."""
    radii = torch.cat([torch.cdist(block, others).kthvalue(NEIGHBOURS + 1, dim=1).values for block in others.split(BLOCK)])
    return torch.cat([(torch.cdist(block, others) <= radii).any(1) for block in points.split(BLOCK)]).double().mean().item()


def recall_error(generated: Tensor, real: Tensor) -> float:
    """Standard error of recall, the generated as a draw and the real set as it is: by the jackknife that leaves out a group at a time.

    sqrt((G - 1) / G sum (r_g - mean r)^2), r_g the recall without group g (Miller 1974, sec. 2). Not by bootstrap: a picture drawn twice is
    its own neighbour. On Gaussians it came out as large as the true spread of redrawn sets, up to 1.6 times.

    Args:
        generated: (N, D) features, N >= 2 SMALLEST.
        real: (M, D).
    """
    generated, real = generated.double(), real.double()
    group = torch.arange(len(generated)) % min(GROUPS, len(generated))
    kept = [(group != g).nonzero().flatten() for g in group.unique()]
    distances = torch.cdist(generated, generated)
    radii = [distances[rows][:, rows].kthvalue(NEIGHBOURS + 1, dim=1).values for rows in kept]  # each is its own nearest
    found = torch.zeros(len(kept), dtype=torch.float64)
    for block in tqdm(real.split(BLOCK), desc="recall's interval", unit="block", delay=1, dynamic_ncols=True):
        distances = torch.cdist(block, generated)
        found += torch.stack([(distances[:, rows] <= radius).any(1).sum() for rows, radius in zip(kept, radii, strict=True)])
    recalls = found / len(real)
    return ((len(kept) - 1) * recalls.var(correction=0)).sqrt().item()
