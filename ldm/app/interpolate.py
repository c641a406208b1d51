"""`scripts/interpolate.py`: from one picture, prompt or seed to another."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import Drawn, prepare, tell_unread, write_images
from ldm.data.images import open_image
from ldm.pipelines.interpolation import End, interpolate, noise_of


def main(options: argparse.Namespace) -> None:
    """Draws the way from one to the other."""
    images = [None if path is None else open_image(path) for path in (options.image, options.to_image)]
    model, how = prepare(options)
    prompts = [options.prompt, options.prompt if options.to_prompt is None else options.to_prompt]
    seeds = [options.seed, options.seed if options.to_seed is None else options.to_seed]
    tell_unread(model, *dict.fromkeys(prompts))
    ends = []
    for image, prompt, seed in zip(images, prompts, seeds, strict=True):
        noise = model.start_noise(seed) if image is None else noise_of(model, image, how, prompt)
        ends.append(End(noise=noise, cond=model.uncond() if prompt is None else model.text_inputs(prompt)))
    write_images(Drawn.of(interpolate(model, ends[0], ends[1], how), model), options, how)
