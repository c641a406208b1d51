"""How pictures come out of noise: x_t and the estimated x0 along the chain, from noise and from a noised real picture.

    python benchmarks/denoising_strips.py --model runs/mnist-ddpm/checkpoint --data data/mnist --out outputs/strips.png

With --classifier, a classifier leads picture i to class i of --labels, from the first again when they are used up.

Above stands what the solver holds, below what the network takes it for. Not cherry-picked: the first pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm import LatentDiffusion
from ldm.app.cli import run
from ldm.core.random import Streams
from ldm.data.config import DataConfig
from ldm.data.open import open_dataset
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.pipelines.canvas import to_pil
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
    parser.add_argument("--classifier-scale", type=float, help="how strongly (default: 1)")
    parser.add_argument("--labels", nargs="+", help="classes that it leads to, a picture each (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("outputs/strips.png"), help="picture to write (default: %(default)s)")
    options = parser.parse_args()
    if options.classifier is None and (options.labels, options.classifier_scale) != (None, None):
        parser.error("--labels and --classifier-scale go with --classifier")
    model = LatentDiffusion.from_pretrained(options.model)
    how = model.sampling(sampler=options.sampler, steps=options.steps, guidance=1.0)
    ways = [replace(how, seed=seed) for seed in range(options.pictures)]
    if options.classifier is not None:
        named, scale = options.labels or ["0"], 1.0 if options.classifier_scale is None else options.classifier_scale
        guides = [model.guide(options.classifier, [named[way.seed % len(named)]], scale) for way in ways]
        ways = [replace(way, guide=guide) for way, guide in zip(ways, guides, strict=True)]
    how_shown = {"size": model.spec.size, "channels": model.first_stage.image_channels, "background": model.spec.background}
    data = open_dataset(DataConfig(train=options.data, val=options.data, **how_shown), "val", 0)
    if options.pictures > len(data):
        parser.error(f"--pictures {options.pictures}: {options.data} holds out {len(data)}")
    strips = [strip(model, way, 1.0, None) for way in ways]
    for way, sample in zip(ways, data.some(options.pictures), strict=True):
        real = model.first_stage.encode(sample.image[None].to(model.device))
        strips.append(strip(model, way, options.start, real))
    sheet = drawn(strips, model.spec.size)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out)
    print(f"{len(strips)} strips in {options.out}")


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One picture's way out of noise, at times evenly spread over the solver's steps.

    Attributes:
        times: what stands over each column.
        held: x_t, and at last the result.
        taken: the estimates of x0.
        real: what was noised; None = nothing was.
    """

    times: list[str]
    held: list[Image.Image]
    taken: list[Image.Image]
    real: Image.Image | None


def strip(model: LatentDiffusion, how: Sampling, start: float, real: Tensor | None) -> Strip:
    """From noise, or from a real latent (1, Z, h, w) noised to start."""
    seen: list[tuple[float, Tensor, Tensor]] = []

    def watched(denoise: Denoise, streams: Streams) -> Denoise:
        def inner(x_t: Tensor, t: Tensor) -> Estimate:
            estimate = denoise(x_t, t)
            seen.append((t.flatten()[0].item(), x_t[:1], estimate.x0[:1]))
            return estimate

        return inner

    last = model.generate(model.uncond(), how, start=start, start_latent=real, wrap=watched)
    shown = [seen[i] for i in torch.linspace(0, len(seen) - 1, SHOWN).round().int().tolist()]
    times = [f"t = {t:.2f}" for t, _, _ in shown]
    decode: Callable[[Tensor], Image.Image] = lambda z: to_pil(model.first_stage.decode(z).float().cpu())[0]  # noqa: E731
    held = [*(decode(x / x.std().clamp(min=1)) for _, x, _ in shown), to_pil(last)[0]]
    taken = [decode(x0) for _, _, x0 in shown]
    return Strip(times=[*times, "result"], held=held, taken=taken, real=None if real is None else decode(real))


def drawn(strips: list[Strip], size: int) -> Image.Image:
    """All strips below each other; the real picture stands under the result."""
    side = size * max(1, -(-SMALLEST // size))
    font = ImageFont.truetype(findfont("DejaVu Sans"), 10)
    height = 2 * (side + MARGIN) + 2 * LABEL + MARGIN
    sheet = Image.new("RGB", ((side + MARGIN) * (SHOWN + 1) + MARGIN, len(strips) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, one in enumerate(strips):
        top = number * height + MARGIN
        start = "noise" if one.real is None else "the real picture at the lower right, noised"
        draw.text((MARGIN, top), f"From {start}: above x_t, below x0 as the network estimates it", fill="black", font=font)
        top += 2 * LABEL
        for column, label in enumerate(one.times):
            draw.text((MARGIN + column * (side + MARGIN) + side / 2, top - 2), label, fill="grey", font=font, anchor="mb")
        for row, tiles in enumerate((one.held, [*one.taken, *([one.real] if one.real else [])])):
            for column, tile in enumerate(tiles):
                place = (MARGIN + column * (side + MARGIN), top + row * (side + MARGIN))
                sheet.paste(tile.convert("RGB").resize((side, side), Image.Resampling.NEAREST), place)
    return sheet


if __name__ == "__main__":
    run(lambda _: main())
