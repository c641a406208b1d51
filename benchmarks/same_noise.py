"""Is it the solver, or the flow that the network learned? One model on several grids, and what mends it, from the same noise.

    python benchmarks/same_noise.py --model runs/mnist-sde-small/checkpoint --data data/mnist --out outputs/same-noise \
        --mended "v prediction=runs/mnist-sde-small-v/checkpoint" "EDM=runs/mnist-sde-small-edm/checkpoint"

A fault of the solver changes with the grid and shrinks with the steps; a fault of the flow does neither. Each row's images and numbers lie
in OUT and are not made again, so the command can be stopped and called again. The last call draws OUT/same_noise.png and OUT/same_noise.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import groupby
from pathlib import Path

import safetensors.torch
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad, unfold

from ldm import LatentDiffusion
from ldm.app.cli import run
from ldm.checkpoints.folder import MANIFEST
from ldm.core.files import sha256_of, write_file
from ldm.core.settings import Precision
from ldm.evaluation.dataset import Preprocessing, held_out_images, training_images
from ldm.guidance.thresholded import Threshold
from ldm.metrics.features import InceptionFeatures, as_shown
from ldm.metrics.frechet import FrechetReference
from ldm.pipelines.canvas import to_pil

SHOWN, SCALE = 14, 2  # images a row, and how much they are enlarged
LABEL, HEADING, GAP, MARGIN = 150, 26, 4, 12  # pixels
BRIGHT, DARK = 0.25, 0.1  # of white: a grain of salt is brighter than the one, and its neighbours are darker than the other
ONE_MODEL, MENDED = "One model, its flow by ddim", "The same model, sampled otherwise"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model and how it samples; `group` is the heading that it stands under."""

    group: str
    model: str
    sampler: str = "ddim"
    grid: str = "karras"
    steps: int = 50
    precision: Precision = "fp32"
    threshold: Threshold | None = None

    @property
    def name(self) -> str:
        """What distinguishes it from others of its group."""
        extra = [self.precision] * (self.precision != "fp32") + ["clipped"] * (self.threshold == "clip")
        return ", ".join([f"{self.sampler}, {self.grid} {self.steps}", *extra])

    @property
    def digest(self) -> str:
        """Of all that its images depend on, but for their number."""
        how = (self.sampler, self.grid, self.steps, self.precision, self.threshold)
        return sha256(repr((sha256_of(Path(self.model) / MANIFEST), how)).encode()).hexdigest()[:16]

    def sampled(self, count: int) -> Tensor:
        """(count, C, H, W) in [-1, 1] on the levels of 8 bits; the start noise is the same in every row."""
        model = LatentDiffusion.from_pretrained(self.model, precision=self.precision)
        how = model.sampling(
            sampler=self.sampler, grid=self.grid, steps=self.steps, threshold=self.threshold or "none", guidance=1.0, num_images=count
        )  # fmt: skip
        return as_shown(model.generate(model.uncond(), how))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row's images and their worth.

    Attributes:
        group: of the row.
        name: of the row.
        fid: of all images to the training images.
        salted: share of images with salt, see `has_salt`.
        difference: root mean square over pixels to the most exact row's images, 1 = from black to white; None = nothing to compare.
        shown: the first images, (SHOWN, C, H, W) in [-1, 1].
    """

    group: str
    name: str
    fid: float
    salted: float
    difference: float | None
    shown: Tensor = field(repr=False)


def main() -> None:
    """Measures what is not measured yet, and draws all."""
    parser = argparse.ArgumentParser(description="One model on several grids, and what mends it, from the same noise.")
    parser.add_argument("--model", required=True, help="checkpoint folder of an unconditional model on pixels")
    parser.add_argument("--mended", nargs="*", default=[], metavar="NAME=CHECKPOINT", help="models to compare it with (default: none)")
    parser.add_argument("--data", required=True, help="their training images, with a held-out split")
    parser.add_argument("--num-images", type=int, default=600, help="images a row (default: %(default)s)")
    parser.add_argument("--reference-images", type=int, default=1500, help="training images to compare with (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/same-noise"), help="folder for results (default: %(default)s)")
    options = parser.parse_args()
    if not all("=" in said for said in options.mended):
        parser.error("--mended takes NAME=CHECKPOINT")
    rows = rows_of(options.model, dict(said.split("=", 1) for said in options.mended))

    model = LatentDiffusion.from_pretrained(options.model)
    at_size = Preprocessing(
        size=model.spec.size, fit=model.spec.fit, channels=model.first_stage.image_channels, background=model.spec.background
    )
    training = training_images(options.data, at_size, options.reference_images)
    held_out = held_out_images(options.data, at_size, True, options.num_images)
    inception = InceptionFeatures(model.device)
    reference = FrechetReference(training.features(inception, "training images"))
    real = torch.cat(list(held_out.batches()))
    floor = reference.distance(held_out.features(inception, "held-out images"))
    found = [Measured(group="Real", name="held out", fid=floor, salted=share_salted(real), difference=None, shown=real[:SHOWN])]

    exact: Tensor | None = None
    for row in rows:
        images = kept_images(row, options.num_images, options.out)
        exact = images if exact is None else exact
        fid = kept_fid(images, f"{row.digest}-{training.data.digest[:16]}-{training.count}", row.name, reference, inception, options.out)
        found.append(
            Measured(
                group=row.group,
                name=row.name,
                fid=fid,
                salted=share_salted(images),
                difference=(images - exact).square().mean().sqrt().item() / 2,
                shown=images[:SHOWN],
            )
        )
        print(f"{row.group}: {row.name}: FID {fid:.1f}, {found[-1].salted:.1%} with salt")
    drawn(found).quantize(64).save(options.out / "same_noise.png", optimize=True)
    write_file(options.out / "same_noise.md", table(found))


def rows_of(model: str, mended: dict[str, str]) -> list[Row]:
    """All that is compared. The first is the flow at its most exact, which the others are compared with."""
    exact = Row(group=ONE_MODEL, model=model, steps=200)
    usual = replace(exact, steps=50)
    return [
        exact,
        usual,
        replace(usual, precision="bf16"),
        *(replace(exact, grid=grid, steps=steps) for grid in ("log_snr", "trailing") for steps in (200, 50)),
        *(replace(usual, group=MENDED, sampler=sampler, threshold=threshold) for sampler, threshold in (("ddim", "clip"), ("ddpm", None))),
        *(replace(usual, group=name, model=place, sampler=sampler) for name, place in mended.items() for sampler in ("ddim", "ddpm")),
    ]


def has_salt(images: Tensor) -> Tensor:
    """(B,) whether an image (B, C, H, W) in [-1, 1] has a bright pixel with nothing but dark ones around it, in any channel."""
    light = (images.flatten(0, 1)[:, None] + 1) / 2
    around = unfold(pad(light, (1, 1, 1, 1)), 3)  # (B C, 9, H W), the pixel itself in the middle
    grain = (around[:, 4] > BRIGHT) & (around[:, [0, 1, 2, 3, 5, 6, 7, 8]].amax(1) < DARK)
    return grain.any(1).view(images.shape[:2]).any(1)


def share_salted(images: Tensor) -> float:
    """Share of images with salt."""
    return has_salt(images).float().mean().item()


def kept_images(row: Row, count: int, out: Path) -> Tensor:
    """A row's images from OUT, sampled if they are not there."""
    path = out / f"{row.digest}-{count}.safetensors"
    if not path.exists():
        write_file(path, safetensors.torch.save({"images": row.sampled(count)}))
    return safetensors.torch.load_file(path)["images"]


def kept_fid(images: Tensor, key: str, name: str, reference: FrechetReference, inception: InceptionFeatures, out: Path) -> float:
    """A row's FID from OUT, measured if it is not there; `key` names the row and the reference."""
    path = out / f"{key}-{len(images)}.json"
    if not path.exists():
        write_file(path, json.dumps({"fid": reference.distance(inception.of(images.split(50), len(images), name))}))
    return json.loads(path.read_text())["fid"]


def drawn(found: Sequence[Measured]) -> Image.Image:
    """All rows below each other, groups under their headings: columns are images of the same noise."""
    side = found[0].shown.shape[-1] * SCALE
    groups = [(name, list(rows)) for name, rows in groupby(found, key=lambda row: row.group)]
    width = 2 * MARGIN + LABEL + SHOWN * (side + GAP) - GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + len(groups) * HEADING + len(found) * (side + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    bold, plain = (ImageFont.truetype(findfont(f"DejaVu Sans:{weight}"), size) for weight, size in (("bold", 12), ("regular", 11)))
    top = MARGIN
    for heading, rows in groups:
        draw.text((MARGIN, top + HEADING - 8), heading, fill="black", font=bold, anchor="ls")
        top += HEADING
        for row in rows:
            middle = top + side / 2
            draw.text((MARGIN, middle - 3), row.name, fill="black", font=plain, anchor="ls")
            draw.text((MARGIN, middle + 3), f"FID {row.fid:.1f}, salt {row.salted:.0%}", fill="dimgrey", font=plain, anchor="lt")
            for column, picture in enumerate(to_pil(row.shown)):
                tile = picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(tile, (MARGIN + LABEL + column * (side + GAP), top))
            top += side + GAP
    return sheet


def table(found: Sequence[Measured]) -> str:
    """The same in numbers, as Markdown."""
    rows = [
        f"| {row.group} | {row.name} | {row.fid:.1f} | {row.salted:.1%} | {'' if row.difference is None else f'{row.difference:.3f}'} |"
        for row in found
    ]
    return "\n".join(["| model | sampling | FID | with salt | difference |", "|---|---|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    run(lambda _: main())
