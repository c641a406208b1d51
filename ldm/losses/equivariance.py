"""Equivariance of a first stage: a scaled or turned latent should decode to the scaled or turned image.

    error(T x, decode(T z)), for a transformation T drawn anew each step

A latent that obeys is smooth where its image is, which stage two learns sooner.

Source: Kouzelis et al. 2025, EQ-VAE, sec. 3 (there the term replaces the reconstruction's in half of the steps; here it is one of its own);
Skorokhodov et al. 2025 (arXiv 2502.14831), who scale only. Mirroring is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.core.precision import without_autocast
from ldm.core.random import generator

SMALLEST = 0.25  # scale
QUARTERS = 4


@dataclass(frozen=True)
class SpatialTransform:
    """One transformation, of latents and images alike.

    Attributes:
        scale: of both sides, at most 1.
        turns: quarter turns.
        is_mirrored: left to right, before it is turned.
    """

    scale: float
    turns: int
    is_mirrored: bool

    @staticmethod
    def draw(seed: int, step: int, mirrors: bool) -> SpatialTransform:
        """That of an optimizer step: the same for all micro-batches and processes. Scale and turns are uniform."""
        random = generator(seed, "equivariance", step)
        scale, turns, mirrored = torch.rand(3, generator=random).tolist()
        return SpatialTransform(1 - (1 - SMALLEST) * scale, int(QUARTERS * turns), mirrors and mirrored < 0.5)

    def of_latent(self, latent: Tensor, least: int) -> Tensor:
        """(B, C, h, w) transformed; each side at least `least`."""
        return self._applied(latent, self._sides(latent, least))

    def of_image(self, image: Tensor, latent: Tensor, least: int) -> Tensor:
        """(B, C, f h, f w) transformed to f times the size of the transformed latent (B, C, h, w)."""
        factor = image.shape[2] // latent.shape[2]
        height, width = self._sides(latent, least)
        return self._applied(image, (factor * height, factor * width))

    def _sides(self, latent: Tensor, least: int) -> tuple[int, int]:
        height, width = (max(min(least, side), round(self.scale * side)) for side in latent.shape[2:])
        return height, width

    def _applied(self, x: Tensor, sides: tuple[int, int]) -> Tensor:
        scaled = resized(x.flip(-1) if self.is_mirrored else x, sides)
        return scaled.rot90(self.turns, (2, 3))


LARGEST = SpatialTransform(scale=1.0, turns=0, is_mirrored=False)
"""The one that needs most memory."""


def resized(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B, C, *sides), bicubic and without aliasing, float32.

    By one matrix a side: the interpolation of torch has no reproducible gradient on GPUs.
    """
    rows, columns = (_weights(old, new).to(x.device) for old, new in zip(x.shape[2:], sides, strict=True))
    with without_autocast(x.device):
        return rows @ x.float() @ columns.T


def _weights(old: int, new: int) -> Tensor:
    """(new, old): how much of each old sample is in each new one."""
    return F.interpolate(torch.eye(old)[None, None], size=(new, old), mode="bicubic", antialias=True)[0, 0]
