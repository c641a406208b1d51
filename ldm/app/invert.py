"""`scripts/invert.py`: the noise of a picture, and what the model draws from it."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import Drawn, prepare, tell_unread, write_images
from ldm.data.images import open_image
from ldm.metrics.reconstruction import psnr
from ldm.pipelines.edit import latent_of
from ldm.pipelines.interpolation import drawn_from, noise_of


def main(options: argparse.Namespace) -> None:
    """Draws the picture again, and changed."""
    image = open_image(options.image)
    model, how = prepare(options)
    tell_unread(model, options.prompt, options.to_prompt)
    noise = noise_of(model, image, how, options.prompt)
    prompts = [options.prompt] if options.to_prompt is None else [options.prompt, options.to_prompt]
    images = drawn_from(model, noise, [model.uncond() if prompt is None else model.text_inputs(prompt) for prompt in prompts], how)
    encoded = model.decode(latent_of(model, image))
    print(f"drawn again: PSNR {psnr(images[:1], encoded).item():.1f} dB to the decoded picture; its noise has std {noise.std().item():.2f}")
    write_images(Drawn.of(images, model), options, how)
