"""Latent diffusion: train the autoencoder and the diffusion model on your own pictures, then sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.core.version import __version__

if TYPE_CHECKING:
    from ldm.pipelines.latent_diffusion import LatentDiffusion

__all__ = ["LatentDiffusion", "__version__"]


def __getattr__(name: str) -> object:
    """`LatentDiffusion` on first use, so that `import ldm` stays light."""
    if name == "LatentDiffusion":
        from ldm.pipelines.latent_diffusion import LatentDiffusion

        return LatentDiffusion
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
