"""`scripts/inpaint.py`: part of a picture painted anew."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import Drawn, prepare, tell_unread, write_images
from ldm.data.images import doubt_about, open_image
from ldm.pipelines.edit import inpaint
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling


def main(options: argparse.Namespace) -> None:
    """Paints the masked part."""
    open_image(options.image)  # what cannot be read is refused before a model is loaded
    if doubt := doubt_about(open_image(options.mask)):
        print(f"note: {options.mask} {doubt}", flush=True)
    model, how = prepare(options)
    tell_unread(model, options.prompt, options.negative_prompt)
    write_images(draw(model, options, how), options, how)


def draw(model: LatentDiffusion, options: argparse.Namespace, how: Sampling) -> Drawn:
    """The paintings of the flags.

    Raises:
        UserError: files that cannot be read; see `inpaint`.
    """
    image, mask = open_image(options.image), open_image(options.mask)
    return Drawn(images=inpaint(model, image, mask, how, options.prompt, options.negative_prompt))
