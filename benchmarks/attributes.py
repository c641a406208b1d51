"""How well a small model learns two attributes at once: the colour and the size of drawn discs.

    python benchmarks/attributes.py --out runs/attributes

Draws a folder of discs with a caption table, trains a pixel model on it (the same command again resumes), samples
every colour at several sizes, and measures both in the samples. Prints a table and writes it, with a picture of the samples, to --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from ldm import LatentDiffusion
from ldm.app.arguments import train_ldm
from ldm.core.random import generator

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 200, 40)}
SIDE, COUNT = 16, 2000
SMALLEST, LARGEST = 4, 12  # diameters in pixels
ASKED = (5, 7, 9, 11)
CONFIG = """
name: attributes
data: {train: null, val: null, size: 16, cache_latents: false}
first_stage: {kind: identity}
denoiser: {kind: unet, channels: 32, multipliers: [1, 2], blocks: 2, attention: [2], heads: 4, transformer_depth: 0, vector_width: 64}
process: {kind: discrete_vp, spacing: cosine}
prediction: v
weighting: min_snr
conditioning:
  attributes: {kind: attributes, width: 64, drop: 0.1, fields: {colour: {kind: choice}, size: {kind: number}}}
drop_all: 0.0
sampling: {sampler: ddim, steps: 25, guidance: 1.5}
train: {steps: 1500, batch_size: 32, checkpoint_every: 500, sample_every: 1500, ema_decay: 0.995, optimizer: {learning_rate: 1.0e-3}}
"""


def main() -> None:
    """Trains, samples, measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for data, run and results")
    parser.add_argument("--num-images", type=int, default=16, help="samples of each colour and size (default: %(default)s)")
    options = parser.parse_args()
    data, config = draw(options.out / "discs"), options.out / "config.yaml"
    config.write_text(CONFIG)
    train_ldm.main(["--config", str(config), "--run-dir", str(options.out / "run"), f"data.train={data}"])

    model = LatentDiffusion.from_pretrained(options.out / "run" / "checkpoint")
    rows, shown = [], []
    for colour in COLOURS:
        for size in ASKED:
            cond = {"attributes.colour": colour, "attributes.size": size}
            images = [pil_to_tensor(image) for image in model.sample(cond=cond, num_images=options.num_images, seed=0)]
            seen = [measured(image) for image in images]
            sizes = torch.tensor([found for _, found in seen])
            right = sum(name == colour for name, _ in seen) / len(seen)
            rows.append(
                {"colour": colour, "size": size, "colour_right": right, "size_mean": sizes.mean().item(), "size_std": sizes.std().item()}
            )
            shown += images[:4]
            print(f"{colour:>7} {size:2d}: colour right {right:.0%}, diameter {sizes.mean():.2f} +- {sizes.std():.2f}")
    (options.out / "attributes.json").write_text(json.dumps(rows, indent=1) + "\n")
    grid = make_grid(torch.stack(shown), nrow=4 * len(ASKED), padding=1, pad_value=255)
    picture = to_pil_image(grid)
    picture.resize((3 * picture.width, 3 * picture.height), Image.Resampling.NEAREST).save(options.out / "attributes.png")
    error = sum(abs(row["size_mean"] - row["size"]) for row in rows) / len(rows)
    print(f"colour right {sum(row['colour_right'] for row in rows) / len(rows):.1%}, mean error of the mean diameter {error:.2f} pixels")


def draw(folder: Path) -> Path:
    """COUNT discs on white, and captions.csv with their colour and diameter; drawn four times as large and scaled down."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file,caption,colour,size"]
    for number, (name, size, left, top) in enumerate(_discs()):
        canvas = Image.new("RGB", (4 * SIDE, 4 * SIDE), "white")
        ImageDraw.Draw(canvas).ellipse((4 * left, 4 * top, 4 * (left + size) - 1, 4 * (top + size) - 1), fill=COLOURS[name])
        canvas.resize((SIDE, SIDE), Image.Resampling.BOX).save(folder / f"{number:04d}.png")
        lines.append(f"{number:04d}.png,a disc,{name},{size:.2f}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def _discs() -> Iterator[tuple[str, float, float, float]]:
    """(colour, diameter, left, top)."""
    for number in range(COUNT):
        colour, size, left, top = torch.rand(4, generator=generator("disc", number)).tolist()
        size = SMALLEST + (LARGEST - SMALLEST) * size
        yield list(COLOURS)[int(len(COLOURS) * colour)], size, left * (SIDE - size), top * (SIDE - size)


def measured(image: Tensor) -> tuple[str, float]:
    """The colour that an image (3, SIDE, SIDE) uint8 is nearest to where it is least white, and the diameter of a disc of its area."""
    levels = image.double()
    names, colours = list(COLOURS), torch.tensor(list(COLOURS.values())).double()
    away = (255 - levels).pow(2).sum(0).sqrt()  # (SIDE, SIDE): how far from white
    centre = levels[:, away > 0.7 * away.max()].mean(1)
    nearest = int((colours - centre).pow(2).sum(1).argmin())
    coverage = (away / (255 - colours[nearest]).pow(2).sum().sqrt()).clamp(max=1).sum().item()
    return names[nearest], 2 * (coverage / torch.pi) ** 0.5


if __name__ == "__main__":
    main()
