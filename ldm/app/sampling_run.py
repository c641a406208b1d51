"""What all picture-making scripts share: their flags, the progress bar, the files they leave."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from ldm.app.cli import Parser
from ldm.config.loader import to_short_form
from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.core.precision import Precision
from ldm.core.version import __version__
from ldm.diffusion.grid import Grid
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import OnStep, Progress, Sampling
from ldm.samplers.sampler import Sampler

DEFAULT_MODEL = "checkpoints/emoji"
GRID, PARAMETERS, TOOL = "grid.png", "parameters.json", "ldm "
GRID_TILE = 512  # larger pictures are shown in the grid at this size


def parser(description: str, examples: str, out: str) -> Parser:
    """A parser with the shared flags; what is not given is as the model's checkpoint says."""
    made = Parser(description, examples)
    made.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint folder (default: %(default)s)")
    made.add_argument("--lora", type=Path, help="folder of a LoRA that was trained on the model, RUN_DIR/lora of such a run")
    made.add_argument("--lora-scale", type=float, help="how strongly it acts (default: 1, as it was trained)")
    add_sampling_flags(made)
    made.add_argument("--num-images", type=int, default=4, help="how many pictures (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="picture i depends on (seed, i) only (default: %(default)s)")
    made.add_argument("--out", type=Path, default=Path(out), help="folder for the pictures (default: %(default)s)")
    made.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of the networks (default: %(default)s)")
    return made


def add_sampling_flags(made: Parser) -> None:
    """How the solver goes; what is not given is as the model's checkpoint says."""
    made.add_argument("--sampler", help=f"{', '.join(Sampler.kinds())}; settings follow: 'pc corrections=0' (default: as the model says)")
    made.add_argument("--grid", help=f"spacing of the steps: {', '.join(Grid.kinds())}; e.g. 'karras rho=5' (default: as the model says)")
    made.add_argument("--steps", type=int, help="solver steps (default: as the model says, mostly 20)")
    made.add_argument("--guidance", type=float, help="classifier-free guidance; 1 = none (default: as the model says)")
    made.add_argument(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="noise levels, in sigma / alpha, at which that guidance acts; HIGH may be inf (default: as the model says, mostly all)",
    )
    made.add_argument(
        "--guidance-rescale",
        type=float,
        metavar="R",
        help="0 to 1, how far the contrast that it adds is taken back (default: as the model says, mostly 0)",
    )
    made.add_argument(
        "--threshold",
        type=_threshold,
        metavar="clip|P|none",
        help="models on pixels: x0 is clipped to [-1, 1], or scaled down by its percentile P, e.g. 0.995 (default: as the model says)",
    )


def _threshold(text: str) -> float | str:
    return text if text in ("clip", "none") else float(text)


def sampling_of(model: LatentDiffusion, options: argparse.Namespace, num_images: int = 1, on_step: OnStep | None = None) -> Sampling:
    """What the flags of `add_sampling_flags` and --seed ask for.

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


def prepare(options: argparse.Namespace) -> tuple[LatentDiffusion, Sampling]:
    """The model, and the sampling that the flags ask for.

    Raises:
        UserError: a model that cannot be opened, unknown sampler or grid, a number out of range, a place that cannot be written.
    """
    check_folder(options.out)
    for name in (*_names(options.num_images), GRID, PARAMETERS):
        if (options.out / name).exists() and not _is_ours(options.out / name):
            raise UserError(f"--out {options.out}: {name} there is of no such script, and would be overwritten; name another folder")
    if options.lora is None and options.lora_scale is not None:
        raise UserError("--lora-scale goes with --lora")
    lora_scale = 1.0 if options.lora_scale is None else options.lora_scale
    model = LatentDiffusion.from_pretrained(options.model, precision=options.precision, lora=options.lora, lora_scale=lora_scale)
    how = sampling_of(model, options, options.num_images, Progress())
    return model, how


def check_folder(out: Path) -> None:
    """Refuses, before any work, a folder that could not be made or written."""
    there = next(path for path in (out, *out.parents, Path()) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: not allowed to write in {there}; name another folder")


def write_pictures(pictures: Sequence[Image.Image], options: argparse.Namespace, how: Sampling) -> None:
    """`NNN.png`, each with its parameters; `grid.png`; `parameters.json`. Says where they are.

    Pictures that an earlier call left in the folder, and only those, are replaced or removed: the folder shows one call.
    """
    out = options.out
    parameters: dict[str, Any] = {key: str(value) if isinstance(value, Path) else value for key, value in sorted(vars(options).items())}
    parameters |= {"sampler": to_short_form(how.sampler), "grid": to_short_form(how.grid), "steps": how.steps, "guidance": how.guidance}
    parameters |= {"guidance_interval": _as_json(how.guidance_interval), "guidance_rescale": how.guidance_rescale}
    parameters |= {"threshold": how.threshold}
    parameters |= {"tool": f"{TOOL}{__version__}", "torch": torch.__version__}
    stale = _pictures_of(out)
    names = _names(len(pictures))
    for number, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        info = PngInfo()
        info.add_itxt("parameters", json.dumps(parameters | {"number": number}, ensure_ascii=False))
        write_file(out / name, _png(picture, info))
    write_file(out / GRID, _png(_grid(pictures)))
    for name in stale - set(names):
        (out / name).unlink(missing_ok=True)
    write_file(out / PARAMETERS, json.dumps(parameters | {"pictures": names}, ensure_ascii=False, indent=1) + "\n")
    print(f"{len(pictures)} picture{'s' * (len(pictures) > 1)}, grid.png and parameters.json in {out}")


def _as_json(interval: tuple[float, float] | None) -> list[float | str] | None:
    """JSON has no infinity: it is written as the flag takes it."""
    return interval and [level if math.isfinite(level) else str(level) for level in interval]


def _pictures_of(out: Path) -> set[str]:
    """The pictures that an earlier call says it left."""
    try:
        names = json.loads((out / PARAMETERS).read_text(encoding="utf-8"))["pictures"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and name.removesuffix(".png").isdigit()}


def _names(count: int) -> list[str]:
    return [f"{number:03d}.png" for number in range(count)]


def _is_ours(path: Path) -> bool:
    """Whether a picture, or the JSON, says that a script here made it; the grid says nothing, and is whose its neighbours are."""
    if path.name == GRID:
        return any(_is_ours(path.with_name(name)) for name in (PARAMETERS, *_names(1)))
    try:
        if path.name == PARAMETERS:
            said = json.loads(path.read_text(encoding="utf-8"))
        else:
            with Image.open(path) as picture:
                said = json.loads(picture.info["parameters"])
        return str(said["tool"]).startswith(TOOL)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """All pictures, which are of one size, on white; one row of up to eight, else about as many rows as columns."""
    columns = len(pictures) if len(pictures) <= 8 else math.ceil(len(pictures) ** 0.5)
    tiles = []
    for picture in pictures:
        tile = picture.convert("RGBA")
        tile.thumbnail((GRID_TILE, GRID_TILE))
        tiles.append(pil_to_tensor(Image.alpha_composite(Image.new("RGBA", tile.size, "white"), tile).convert("RGB")))
    return to_pil_image(make_grid(torch.stack(tiles), nrow=columns, padding=4, pad_value=255))


def _png(picture: Image.Image, info: PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
