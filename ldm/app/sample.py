"""`scripts/sample.py`: pictures of a class, of a map, of boxes, or of nothing in particular."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ldm.app.sampling_run import Drawn, prepare, tell_unread, write_images
from ldm.core.distributed import ALONE, World
from ldm.core.errors import UserError
from ldm.data.images import open_map
from ldm.data.sources.folder import read_boxes
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling


def main(options: argparse.Namespace) -> None:
    """Draws samples; of several processes each its share, and the first writes all."""
    _inputs(options)  # what cannot be read is refused before a model is loaded
    world = World.join(options.device)
    try:
        model, how = prepare(options, world.device)
        if world.is_first:
            tell_unread(model, options.negative_prompt)
        if options.classifier is not None:
            options.classifier_scale = 1.0 if options.classifier_scale is None else options.classifier_scale
        drawn = draw(model, options, how, world)
        world.on_first(lambda: write_images(drawn, options, how))
    finally:
        world.leave()


def draw(model: LatentDiffusion, options: argparse.Namespace, how: Sampling, world: World = ALONE) -> Drawn:
    """The pictures of the flags, on every process.

    Raises:
        UserError: files that cannot be read; a condition or a classifier that the model does not take.
    """
    cond, given = _inputs(options)
    is_guided = options.classifier is not None
    if is_guided:
        how = replace(how, guide=model.guide(options.classifier, (options.label,), options.classifier_scale))
    inputs, uncond = model.inputs(cond, label=options.label, is_guided=is_guided, **given), model.uncond(options.negative_prompt)
    start, stop = world.part(how.num_images)
    share = replace(how, num_images=max(1, stop - start), on_step=how.on_step if world.is_first else None)
    own = [model.generate(inputs, share, uncond, offset=start)] if start < stop else []
    return Drawn.of(torch.cat([images for one in world.of_all(own) for images in one]), model)


def _inputs(options: argparse.Namespace) -> tuple[dict[str, str], dict[str, Any]]:
    """Conditions by name, and those by kind."""
    layout = None if options.map is None else open_map(options.map)
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    return dict(_conditions(options.cond)), {"layout": layout, "boxes": boxes}


def _conditions(given: Sequence[str]) -> Iterator[tuple[str, str]]:
    names = [text.partition("=")[0] for text in given]
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--cond {text!r}: must read NAME=VALUE, e.g. class=cat or attributes.age=40")
        if names.count(name) > 1:
            raise UserError(f"--cond {name} is given {names.count(name)} times: give it once (several tags are separated by ';')")
        yield name, value
