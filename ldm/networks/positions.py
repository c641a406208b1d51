"""Where a token lies in its picture: a table that is added (sin-cos), or a turn of queries and keys (rotary). L tokens = rows x columns."""

from __future__ import annotations

import torch
from torch import Tensor

WAVELENGTH = 10_000.0


def sin_cos_table(rows: int, columns: int, width: int, device: torch.device | None = None) -> Tensor:
    """(L, width) float32: half of the width for the column, half for the row, each as sines, then cosines.

    Args:
        rows, columns: of the grid; a position is its index.
        width: divisible by 4.
        device: of the result.

    Source: the fixed table of Peebles & Xie 2023 (DiT), which is that of He et al. 2022 (MAE): columns first.
    """
    row, column = _places(rows, columns)
    quarter = width // 4
    frequencies = WAVELENGTH ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    angles = [place[:, None] * frequencies for place in (column, row)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return table.to(torch.float32).to(device)


def rotary_angles(rows: int, columns: int, width: int, device: torch.device | None = None) -> Tensor:
    """(L, width / 2) float32: the angle by which each pair of numbers is turned; half of the pairs by the row, half by the column.

    Args:
        rows, columns: of the grid; a position is its index.
        width: of a head, divisible by 4.
        device: of the result.

    Source: Su et al. 2021 (RoPE), sec. 3.2, along two axes.
    """
    row, column = _places(rows, columns)
    quarter = width // 4
    frequencies = WAVELENGTH ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], dim=1)
    return angles.to(torch.float32).to(device)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """x (B, N, L, D) with each pair (x_i, x_{i + D/2}) turned by its angle (L, D / 2)."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def _places(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """(L,) row and column of each token, float64: on the CPU, since not every device has it."""
    row, column = torch.meshgrid(*(torch.arange(count, dtype=torch.float64, device="cpu") for count in (rows, columns)), indexing="ij")
    return row.flatten(), column.flatten()
