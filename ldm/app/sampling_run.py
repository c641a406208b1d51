"""What all picture-making scripts share: the model that the flags name, the progress bar, the files they leave."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldm.config.loader import to_short_form
from ldm.core.errors import UserError
from ldm.core.files import Outputs
from ldm.core.ownership import recorded_in
from ldm.core.version import __version__
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.numbers import as_numbers, has_numbers
from ldm.pipelines.sampling import Progress, Sampling
from ldm.samplers.sampler import OnStep

GRID, PARAMETERS = "grid.png", "parameters.json"
SUFFIXES = ("png", "npy")
MOST_IMAGES = 10_000  # of one call, which holds all in memory and shows all in one grid
GRID_TILE = 512  # larger pictures are shown in the grid at this size
GRID_GAP = 4  # pixels between them


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a call drew.

    Attributes:
        images: to look at.
        numbers: (B, H, W, C), what 8 bits of grey or RGB do not hold of them, see `as_numbers`; None = they hold all.
    """

    images: Sequence[Image.Image]
    numbers: np.ndarray | None = None

    @staticmethod
    def of(images: Tensor, model: LatentDiffusion) -> Drawn:
        """Of (B, C, H, W) in [-1, 1], in the depth and with the channels of the model's data."""
        return Drawn(images=to_pil(images), numbers=as_numbers(images, model.spec) if has_numbers(model.spec) else None)


def sampling_of(model: LatentDiffusion, options: argparse.Namespace, num_images: int = 1, on_step: OnStep | None = None) -> Sampling:
    """The sampling of the flags of `arguments.sampling.add_sampling_flags` and --seed.

    Raises:
        UserError: unknown sampler or grid; a number out of range.
    """
    return model.sampling(
        sampler=options.sampler,
        grid=options.grid,
        steps=options.steps,
        guidance=options.guidance,
        guidance_interval=options.guidance_interval and tuple(options.guidance_interval),
        guidance_rescale=options.guidance_rescale,
        threshold=options.threshold,
        num_images=num_images,
        seed=options.seed,
        on_step=on_step,
    )


def prepare(options: argparse.Namespace, device: torch.device | None = None) -> tuple[LatentDiffusion, Sampling]:
    """The model, on a device or that of the flags, and the sampling of the flags.

    Raises:
        UserError: a model that cannot be opened, unknown sampler or grid, a number out of range, a size that the model cannot draw, a place
            that cannot be written.
    """
    if options.num_images > MOST_IMAGES:
        raise UserError(f"--num-images must be at most {MOST_IMAGES:,}, got {options.num_images}: give several calls a --seed each")
    check_folder(options.out)
    Outputs(options.out).check(*(name for suffix in SUFFIXES for name in _names(options.num_images, suffix)), GRID, PARAMETERS)
    model = open_model(options, device or options.device)
    how = sampling_of(model, options, options.num_images, Progress())
    return model, how


def open_model(options: argparse.Namespace, device: str | torch.device) -> LatentDiffusion:
    """The model of the flags.

    Raises:
        UserError: one that cannot be opened, a size that it cannot draw.
    """
    if options.lora is None and options.lora_scale is not None:
        raise UserError("--lora-scale goes with --lora")
    lora_scale = 1.0 if options.lora_scale is None else options.lora_scale
    model = LatentDiffusion.from_pretrained(options.model, device, precision=options.precision, lora=options.lora, lora_scale=lora_scale)
    return model.at_size(options.height, options.width) if "height" in options else model


def tell_unread(model: LatentDiffusion, *texts: str | None) -> None:
    """Says which words of prompts are not read: the end of a long one, words that the text encoder does not know."""
    for name, part in model.conditioners.controlled_by("text").items():
        for line in part.unread(tuple(filter(None, texts))):
            print(f"{name}: {line}")


def check_folder(out: Path) -> None:
    """Refuses, before any work, a folder that could not be made or written."""
    there = next(path for path in (out, *out.parents, Path()) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: not allowed to write in {there}; name another folder")


def write_images(drawn: Drawn, options: argparse.Namespace, how: Sampling) -> None:
    """Writes `files_of` into the folder of the flags, and says where they are.

    Pictures that an earlier call left in the folder, and nobody changed, are replaced or removed: the folder shows one call.
    """
    out = options.out
    stale = frozenset(name for name in recorded_in(out) if Path(name).suffix[1:] in SUFFIXES and Path(name).stem.isdigit())
    Outputs(out).write(files_of(drawn, options, how), stale=stale)
    print(f"{len(drawn.images)} picture{'s' * (len(drawn.images) > 1)}, grid.png and parameters.json in {out}")


def files_of(drawn: Drawn, options: argparse.Namespace, how: Sampling) -> dict[str, bytes]:
    """What a call leaves, by file name: `NNN.png`, each with its parameters; `grid.png`; `parameters.json`.

    Where there are numbers, the single files hold these: grey uint16 in a PNG of 16 bits, all others in `NNN.npy`.
    """
    images, numbers = drawn.images, drawn.numbers
    parameters: dict[str, Any] = {key: str(value) if isinstance(value, Path) else value for key, value in sorted(vars(options).items())}
    parameters |= {"sampler": to_short_form(how.sampler), "grid": to_short_form(how.grid), "steps": how.steps, "guidance": how.guidance}
    parameters |= {"guidance_interval": _as_json(how.guidance_interval), "guidance_rescale": how.guidance_rescale}
    parameters |= {"threshold": how.threshold}
    parameters |= {"tool": f"ldm {__version__}", "torch": torch.__version__}
    is_array = numbers is not None and (numbers.dtype != np.uint16 or numbers.shape[3] != 1)
    names = _names(len(images), SUFFIXES[is_array])
    files: dict[str, bytes] = {}
    for number, (name, image) in enumerate(zip(names, images, strict=True)):
        if numbers is not None and is_array:
            files[name] = npy_file(numbers[number])
            continue
        info = PngInfo()
        info.add_itxt("parameters", _json(parameters | {"number": number}).decode())
        files[name] = _png(image if numbers is None else Image.fromarray(numbers[number, :, :, 0]), info)
    files[GRID] = _png(_grid(images))
    files[PARAMETERS] = _json(parameters | {"pictures": names}, indent=1) + b"\n"
    return files


def _json(parameters: Mapping[str, Any], indent: int | None = None) -> bytes:
    """UTF-8; bytes of a path that are none are escaped, as JSON has it."""
    return json.dumps(parameters, ensure_ascii=False, indent=indent).encode(errors="backslashreplace")


def _as_json(interval: tuple[float, float] | None) -> list[float | str] | None:
    """JSON has no infinity: it is written as the flag takes it."""
    return interval and [level if math.isfinite(level) else str(level) for level in interval]


def _names(count: int, suffix: str) -> list[str]:
    return [f"{number:03d}.{suffix}" for number in range(count)]


def _grid(images: Sequence[Image.Image]) -> Image.Image:
    """All pictures, which are of one size, on white; one row of up to eight, else about as many rows as columns."""
    columns = len(images) if len(images) <= 8 else math.ceil(len(images) ** 0.5)
    tiles = [image.convert("RGBA") for image in images]
    for tile in tiles:
        tile.thumbnail((GRID_TILE, GRID_TILE))
    width, height = (side + GRID_GAP for side in tiles[0].size)
    grid = Image.new("RGBA", (columns * width + GRID_GAP, math.ceil(len(tiles) / columns) * height + GRID_GAP), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        grid.alpha_composite(tile, (column * width + GRID_GAP, row * height + GRID_GAP))
    return grid.convert("RGB")


def _png(image: Image.Image, info: PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def npy_file(array: np.ndarray) -> bytes:
    """A `.npy` of it."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
