"""`scripts/img2img.py`: a picture noised and denoised towards a prompt."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import prepare, tell_unread, write_images
from ldm.data.images import open_image
from ldm.pipelines.edit import image_to_image


def main(options: argparse.Namespace) -> None:
    """Changes a picture."""
    image = open_image(options.image)
    model, how = prepare(options)
    tell_unread(model, options.prompt, options.negative_prompt)
    images = image_to_image(model, image, options.strength, how, options.prompt, options.negative_prompt)
    write_images(images, options, how)
