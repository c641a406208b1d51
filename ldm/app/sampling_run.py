"""What all picture-making scripts share: their flags, the progress bar, the files they leave."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import make_grid
from tqdm import tqdm

import ldm
from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.pipelines.canvas import as_pictures
from ldm.pipelines.latent_diffusion import LatentDiffusion, OnStep, Sampling

DEFAULT_MODEL = "checkpoints/emoji"


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser with the shared flags; what is not given is as the model's checkpoint says."""
    made = argparse.ArgumentParser(description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default=DEFAULT_MODEL, help=f"checkpoint folder (default: {DEFAULT_MODEL})")
    made.add_argument("--sampler", help="ddpm, ddim or dpmpp_2m (default: as the model says)")
    made.add_argument("--steps", type=int, help="solver steps (default: as the model says, mostly 20)")
    made.add_argument("--guidance", type=float, help="classifier-free guidance; 1 = none (default: as the model says, mostly 4)")
    made.add_argument("--num-images", type=int, default=4, help="how many pictures (default: 4)")
    made.add_argument("--seed", type=int, default=0, help="picture i depends on (seed, i) only (default: 0)")
    made.add_argument("--out", type=Path, help="folder for the pictures (default: outputs/SCRIPT)")
    made.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the networks (default: fp32)")
    return made


class Progress:
    """A bar over solver steps."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __call__(self, done: int, steps: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=steps, unit="step", dynamic_ncols=True, file=sys.stderr)
        self._bar.update(done - self._bar.n)
        if done == steps:
            self._bar.close()
            self._bar = None


def open_model(options: argparse.Namespace) -> LatentDiffusion:
    return LatentDiffusion.from_pretrained(options.model, precision=options.precision)


def sampling_of(model: LatentDiffusion, options: argparse.Namespace, on_step: OnStep) -> Sampling:
    """The sampling that the flags ask for.

    Raises:
        UserError: unknown sampler, a number out of range.
    """
    return model.sampling(
        sampler=options.sampler,
        steps=options.steps,
        guidance=options.guidance,
        num_images=options.num_images,
        seed=options.seed,
        on_step=on_step,
    )


def write_pictures(pictures: Sequence[Image.Image], out: Path, options: argparse.Namespace, how: Sampling) -> None:
    """`NNN.png`, each with its parameters; `grid.png`; `parameters.json`. Says where they are."""
    parameters: dict[str, Any] = {key: str(value) if isinstance(value, Path) else value for key, value in sorted(vars(options).items())}
    parameters |= {"sampler": how.sampler.kind, "steps": how.steps, "guidance": how.guidance, "tool": f"ldm {ldm.__version__}", "torch": torch.__version__}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--out {out} is a file; name a folder") from error
    for number, picture in enumerate(pictures):
        info = PngInfo()
        info.add_itxt("parameters", json.dumps(parameters | {"image": number}, ensure_ascii=False))
        picture.save(out / f"{number:03d}.png", pnginfo=info)
    if len({picture.size for picture in pictures}) == 1:
        stacked = torch.stack([pil_to_tensor(picture.convert("RGB")) for picture in pictures]).float() / 127.5 - 1
        columns = min(len(pictures), 8) if len(pictures) <= 8 else round(len(pictures) ** 0.5)
        as_pictures(make_grid(stacked, nrow=columns, padding=4, pad_value=1.0)[None])[0].save(out / "grid.png")
    write_file(out / "parameters.json", json.dumps(parameters, ensure_ascii=False, indent=1) + "\n")
    print(f"{len(pictures)} picture{'s' * (len(pictures) > 1)}, grid.png and parameters.json in {out}")
