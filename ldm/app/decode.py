"""`scripts/decode.py`: latents to pictures."""

from __future__ import annotations

import argparse
import io

import torch
from tqdm import tqdm

from ldm.app.latent_files import SUFFIXES, check_out, normalization_of, open_first_stage, read_latent
from ldm.app.sampling_run import npy_file
from ldm.core.device import find_device
from ldm.core.errors import UserError
from ldm.core.files import new_folder, write_file
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.numbers import as_numbers, has_numbers


@torch.no_grad()
def main(options: argparse.Namespace) -> None:
    """Writes the folder of pictures, whole or not at all."""
    check_out(options.out)
    normalization = normalization_of(options.latents)
    paths = sorted(path for path in options.latents.iterdir() if path.suffix in SUFFIXES)
    if len({path.stem for path in paths}) < len(paths):
        raise UserError(f"{options.latents} has .safetensors and .npy files of the same name: remove one of each pair")
    if not paths:
        raise UserError(f"{options.latents} holds no latents: no {' or '.join(SUFFIXES)} file")
    device = find_device(options.device)
    first_stage, spec = open_first_stage(options.model, device)
    if not normalization.has_latents_of(spec.normalization):
        raise UserError(
            f"{options.latents} was encoded by another first stage ({normalization.digest[:12]}) than that of {options.model} "
            f"({spec.normalization.digest[:12]}); name the checkpoint that encoded it with --model"
        )
    with new_folder(options.out) as folder:
        for path in tqdm(paths, unit="picture", dynamic_ncols=True):
            images = first_stage.decode(read_latent(path, spec).to(device)[None]).float().cpu()
            if has_numbers(spec):
                write_file(folder / f"{path.stem}.npy", npy_file(as_numbers(images, spec)[0]))
            else:
                buffer = io.BytesIO()
                to_pil(images)[0].save(buffer, "PNG")
                write_file(folder / f"{path.stem}.png", buffer.getvalue())
    print(f"{len(paths)} picture{'s' * (len(paths) > 1)} in {options.out}")
