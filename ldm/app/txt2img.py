"""`scripts/txt2img.py`: pictures of a text."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import Drawn, prepare, tell_unread, write_images
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling


def main(options: argparse.Namespace) -> None:
    """Draws a prompt."""
    model, how = prepare(options)
    tell_unread(model, options.prompt, options.negative_prompt)
    write_images(draw(model, options, how), options, how)


def draw(model: LatentDiffusion, options: argparse.Namespace, how: Sampling) -> Drawn:
    """The pictures of the flags.

    Raises:
        UserError: a model that reads no text.
    """
    return Drawn.of(model.generate(model.text_inputs(options.prompt), how, model.uncond(options.negative_prompt)), model)
