"""`scripts/inpaint.py`: part of a picture painted anew."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import prepare, tell_unread, write_images
from ldm.data.images import doubt_about, open_image
from ldm.pipelines.edit import inpaint


def main(options: argparse.Namespace) -> None:
    """Paints the masked part."""
    image, mask = open_image(options.image), open_image(options.mask)
    if doubt := doubt_about(mask):
        print(f"note: {options.mask} {doubt}", flush=True)
    model, how = prepare(options)
    tell_unread(model, options.prompt)
    write_images(inpaint(model, image, mask, how, options.prompt), options, how)
