"""`scripts/img2img.py`: a picture noised and denoised towards a prompt."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import Drawn, prepare, tell_unread, write_images
from ldm.data.images import open_image
from ldm.pipelines.edit import image_to_image
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling


def main(options: argparse.Namespace) -> None:
    """Changes a picture."""
    open_image(options.image)  # what cannot be read is refused before a model is loaded
    model, how = prepare(options)
    tell_unread(model, options.prompt, options.negative_prompt)
    write_images(draw(model, options, how), options, how)


def draw(model: LatentDiffusion, options: argparse.Namespace, how: Sampling) -> Drawn:
    """The pictures of the flags.

    Raises:
        UserError: a file that cannot be read; see `image_to_image`.
    """
    image = open_image(options.image)
    return Drawn(images=image_to_image(model, image, options.strength, how, options.prompt, options.negative_prompt))
