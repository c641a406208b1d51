"""`scripts/inpaint.py`: part of a picture painted anew."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import prepare, write_pictures
from ldm.data.images import open_picture
from ldm.pipelines.edit import inpaint


def main(options: argparse.Namespace) -> None:
    """Paints the masked part."""
    picture, mask = open_picture(options.image), open_picture(options.mask)
    model, how = prepare(options)
    write_pictures(inpaint(model, picture, mask, how, options.prompt), options, how)
