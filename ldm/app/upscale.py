"""`scripts/upscale.py`: a small picture drawn large."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import Drawn, prepare, write_images
from ldm.data.images import open_image
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling
from ldm.pipelines.upscaling import upscale


def main(options: argparse.Namespace) -> None:
    """Draws the picture at several times its size."""
    open_image(options.image)  # what cannot be read is refused before a model is loaded
    model, how = prepare(options)
    write_images(draw(model, options, how), options, how)


def draw(model: LatentDiffusion, options: argparse.Namespace, how: Sampling) -> Drawn:
    """The pictures of the flags.

    Raises:
        UserError: a file that cannot be read; see `upscale`.
    """
    return Drawn(images=upscale(model, open_image(options.image), how))
