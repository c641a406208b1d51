"""`scripts/upscale.py`: a small picture drawn large."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import prepare, write_images
from ldm.data.images import open_image
from ldm.pipelines.upscaling import upscale


def main(options: argparse.Namespace) -> None:
    """Draws the picture at several times its size."""
    image = open_image(options.image)
    model, how = prepare(options)
    write_images(upscale(model, image, how), options, how)
