"""`scripts/txt2img.py`: pictures of a text."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import prepare, tell_unread, write_images_or_numbers


def main(options: argparse.Namespace) -> None:
    """Draws a prompt."""
    model, how = prepare(options)
    tell_unread(model, options.prompt, options.negative_prompt)
    images = model.generate(model.text_inputs(options.prompt), how, model.uncond(options.negative_prompt))
    write_images_or_numbers(images, model, options, how)
