"""`scripts/sample.py`: pictures of a class, of a map, of boxes, or of nothing in particular."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ldm.app.sampling_run import prepare, write_images_or_numbers
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.data.images import open_map
from ldm.data.record import Box
from ldm.data.sources.folder import read_boxes


def main(options: argparse.Namespace) -> None:
    """Draws samples."""
    layout = None if options.map is None else open_map(options.map)
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    cond = dict(_conditions(options.cond))
    world = World.join(options.device)
    try:
        _draw(options, cond, layout, boxes, world)
    finally:
        world.leave()


def _draw(options: argparse.Namespace, cond: dict[str, str], layout: Tensor | None, boxes: tuple[Box, ...] | None, world: World) -> None:
    """Each process draws its share of the pictures; the first writes all."""
    model, how = prepare(options, world.device)
    is_guided = options.classifier is not None
    if is_guided:
        options.classifier_scale = 1.0 if options.classifier_scale is None else options.classifier_scale
        how = replace(how, guide=model.guide(options.classifier, (options.label,), options.classifier_scale))
    inputs = model.inputs(cond, label=options.label, layout=layout, boxes=boxes, is_guided=is_guided)
    start, stop = world.part(options.num_images)
    share = replace(how, num_images=max(1, stop - start), on_step=how.on_step if world.is_first else None)
    own = [model.generate(inputs, share, offset=start)] if start < stop else []
    images = torch.cat([drawn for one in world.of_all(own) for drawn in one])
    world.on_first(lambda: write_images_or_numbers(images, model, options, how))


def _conditions(given: Sequence[str]) -> Iterator[tuple[str, str]]:
    names = [text.partition("=")[0] for text in given]
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--cond {text!r}: must read NAME=VALUE, e.g. class=cat or attributes.age=40")
        if names.count(name) > 1:
            raise UserError(f"--cond {name} is given {names.count(name)} times: give it once (several tags are separated by ';')")
        yield name, value
