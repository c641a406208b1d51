"""How pictures come out of noise: x_t and the estimated x0 along the chain, from noise and from a noised real picture.

    python benchmarks/denoising_strips.py --model runs/mnist-ddpm/checkpoint --data data/mnist --out outputs/strips.png

With --classifier, a classifier leads picture i to class i of --labels, from the first again when they are used up.

Rows come in pairs: above what the solver holds, below what the network takes it for. Nothing is picked by hand: the first pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm import LatentDiffusion
from ldm.core.random import Streams
from ldm.data.config import DataConfig
from ldm.data.open import open_dataset
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.pipelines.canvas import as_pictures
from ldm.pipelines.sampling import Sampling

SHOWN = 9
SMALLEST = 56  # a tile's side: small pictures are enlarged
LABEL, MARGIN = 15, 8


def main() -> None:
    """Draws the strips."""
    parser = argparse.ArgumentParser(description="Denoising strips of a trained model.")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--data", required=True, help="pictures to noise, with a held-out split")
    parser.add_argument("--start", type=float, default=0.5, help="noise level of the real picture, in (0, 1] (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=2, help="of each kind (default: %(default)s)")
    parser.add_argument("--sampler", help="with its settings (default: as the model says)")
    parser.add_argument("--steps", type=int, help="of the sampler (default: as the model says)")
    parser.add_argument("--classifier", help="checkpoint of a noise-aware classifier that leads them (default: none)")
    parser.add_argument("--classifier-scale", type=float, default=1.0, help="how strongly (default: %(default)s)")
    parser.add_argument("--labels", nargs="+", default=["0"], help="classes that it leads to, a picture each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/strips.png"), help="picture to write (default: %(default)s)")
    options = parser.parse_args()
    model = LatentDiffusion.from_pretrained(options.model)
    how = model.sampling(sampler=options.sampler, steps=options.steps, guidance=1.0)
    ways = [replace(how, seed=seed) for seed in range(options.pictures)]
    if options.classifier is not None:
        labels = [options.labels[way.seed % len(options.labels)] for way in ways]
        guides = [model.guide(options.classifier, [label], options.classifier_scale) for label in labels]
        ways = [replace(way, guide=guide) for way, guide in zip(ways, guides, strict=True)]
    rows = []
    for way in ways:
        rows += strip(model, way, 1.0, None, "noise")
    data = open_dataset(
        DataConfig(train=options.data, val=options.data, size=model.spec.size, channels=model.first_stage.image_channels), "val", 0
    )
    for way, sample in zip(ways, data.some(options.pictures), strict=True):
        real = model.first_stage.encode(sample.image[None].to(model.device))
        rows += strip(model, way, options.start, real, "a real picture")
    sheet = drawn(rows, model.spec.size)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out)
    print(f"{len(rows)} rows in {options.out}")


Row = tuple[list[Image.Image], list[str], str]
"""Tiles, what stands over each, and what stands over the row."""


def strip(model: LatentDiffusion, how: Sampling, start: float, real: Tensor | None, said: str) -> list[Row]:
    """Two rows: x_t, and the estimate of x0, at times evenly spread over the solver's steps."""
    seen: list[tuple[float, Tensor, Tensor]] = []

    def watched(denoise: Denoise, streams: Streams) -> Denoise:
        def inner(x_t: Tensor, t: Tensor) -> Estimate:
            estimate = denoise(x_t, t)
            seen.append((t.flatten()[0].item(), x_t[:1], estimate.x0[:1]))
            return estimate

        return inner

    last = model.generate(model.untold(), how, start=start, start_latent=real, wrap=watched)
    shown = [seen[i] for i in torch.linspace(0, len(seen) - 1, SHOWN).round().int().tolist()]
    times = [f"t = {t:.2f}" for t, _, _ in shown]
    decode: Callable[[Tensor], Image.Image] = lambda z: as_pictures(model.first_stage.decode(z).float().cpu())[0]  # noqa: E731
    result = as_pictures(last)[0]
    held = [*(decode(x / x.std().clamp(min=1)) for _, x, _ in shown), result]
    taken = [*(decode(x0) for _, _, x0 in shown), result]
    return [(held, [*times, "result"], f"from {said}: x_t"), (taken, [""] * (SHOWN + 1), "x0 as the network estimates it")]


def drawn(rows: list[Row], size: int) -> Image.Image:
    """All rows below each other."""
    factor = max(1, -(-SMALLEST // size))
    side = factor * size
    font = ImageFont.load_default(11)
    height = side + 3 * LABEL
    sheet = Image.new("RGB", ((side + MARGIN) * (SHOWN + 1) + MARGIN, len(rows) * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (tiles, labels, said) in enumerate(rows):
        top = number * height
        draw.text((MARGIN, top + 4), said, fill="black", font=font)
        for column, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
            left = MARGIN + column * (side + MARGIN)
            draw.text((left + side - 1, top + LABEL + 2), label, fill="grey", font=font, anchor="ra")
            sheet.paste(tile.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (left, top + 2 * LABEL + 2))
    return sheet


if __name__ == "__main__":
    main()
