"""`scripts/txt2img.py`: pictures of a text."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import prepare, write_pictures
from ldm.pipelines.canvas import as_pictures


def main(options: argparse.Namespace) -> None:
    """Draws a prompt."""
    model, how = prepare(options)
    pictures = as_pictures(model.generate(model.text_inputs(options.prompt), how, model.uncond(options.negative_prompt)))
    write_pictures(pictures, options, how)
