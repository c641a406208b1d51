"""`scripts/img2img.py`: a picture noised and denoised towards a prompt."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import prepare, write_pictures
from ldm.data.images import open_picture
from ldm.pipelines.edit import image_to_image


def main(options: argparse.Namespace) -> None:
    """Changes a picture."""
    picture = open_picture(options.image)
    model, how = prepare(options)
    pictures = image_to_image(model, picture, options.strength, how, options.prompt, options.negative_prompt)
    write_pictures(pictures, options, how)
