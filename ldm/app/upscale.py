"""`scripts/upscale.py`: a small picture drawn large."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import prepare, write_pictures
from ldm.data.images import open_picture
from ldm.pipelines.upscaling import upscale


def main(options: argparse.Namespace) -> None:
    """Draws the picture at several times its size."""
    picture = open_picture(options.image)
    model, how = prepare(options)
    write_pictures(upscale(model, picture, how), options, how)
