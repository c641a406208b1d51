"""`scripts/encode.py` and `scripts/decode.py`: latents in files, with the latent normalization that they have.

A folder of latents has `latents.json` (the model's name, the latent normalization, and the pictures by file) and a file a picture:
`NAME.safetensors` with the tensor `latent` and the same normalization among its metadata, or `NAME.npy`. A latent is (C, h, w) float32, as
stage two sees it, about mean 0 and std 1: latent = (raw - shift) * scale. It is the posterior's mean.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from ldm.app.sampling_run import check_folder, npy_file
from ldm.checkpoints.folder import save_tensors
from ldm.checkpoints.model import AutoencoderSpec, load_first_stage
from ldm.config.loader import UNREADABLE, build, dump
from ldm.core.device import find_device
from ldm.core.errors import UserError
from ldm.core.files import new_folder, write_file
from ldm.core.ownership import check_replaceable
from ldm.core.version import __version__
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.open import open_dataset
from ldm.data.stream import is_remote
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.first_stage.stage import FirstStage
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.numbers import as_numbers, has_numbers

ABOUT = "latents.json"
KEY = "latent"  # of the tensor in a safetensors file
SUFFIXES = (".safetensors", ".npy")


@torch.no_grad()
def encode(options: argparse.Namespace) -> None:
    """Writes the folder of latents, whole or not at all."""
    _check_out(options.out)
    device = find_device(options.device)
    first_stage, spec = _open(options.model, device)
    data = _pictures(options.pictures, options.split, spec)
    about = {"tool": f"ldm {__version__}", "model": spec.name, "normalization": dump(spec.normalization)}
    files: dict[str, str] = {}
    with new_folder(options.out) as folder:
        for index in tqdm(range(len(data)), unit="picture", dynamic_ncols=True):
            try:
                sample = data.transform(data.source.record(index), 0, index)
            except UserError as error:
                data.unreadable.add(data.source.key(index), str(error))
                continue
            latent = first_stage.encode(sample.image[None].to(device))[0].float().cpu().contiguous()
            name = f"{data.source.key(index)}.{options.format}"
            files[name] = data.source.name_of(index)
            if options.format == "npy":
                write_file(folder / name, npy_file(latent.numpy()))
            else:
                metadata = {"picture": files[name], "normalization": json.dumps(about["normalization"])}
                save_tensors(folder / name, {KEY: latent}, metadata)
        write_file(folder / ABOUT, json.dumps(about | {"files": files}, indent=1, ensure_ascii=False) + "\n")
    if data.unreadable.records:
        print(data.unreadable.line())
    print(f"{len(files)} latents and {ABOUT} in {options.out}; back to pictures: python scripts/decode.py {options.out} --out DIR")


@torch.no_grad()
def decode(options: argparse.Namespace) -> None:
    """Writes the folder of pictures, whole or not at all."""
    _check_out(options.out)
    normalization = _normalization(options.latents)
    paths = sorted(path for path in options.latents.iterdir() if path.suffix in SUFFIXES)
    if len({path.stem for path in paths}) < len(paths):
        raise UserError(f"{options.latents} has .safetensors and .npy files of the same name: remove one of each pair")
    if not paths:
        raise UserError(f"{options.latents} holds no latents: no {' or '.join(SUFFIXES)} file")
    device = find_device(options.device)
    first_stage, spec = _open(options.model, device)
    if not normalization.has_latents_of(spec.normalization):
        raise UserError(
            f"{options.latents} was encoded by another first stage ({normalization.digest[:12]}) than that of {options.model} "
            f"({spec.normalization.digest[:12]}); name the checkpoint that encoded it with --model"
        )
    with new_folder(options.out) as folder:
        for path in tqdm(paths, unit="picture", dynamic_ncols=True):
            images = first_stage.decode(_read(path, spec).to(device)[None]).float().cpu()
            if has_numbers(spec):
                write_file(folder / f"{path.stem}.npy", npy_file(as_numbers(images, spec)[0]))
            else:
                buffer = io.BytesIO()
                to_pil(images)[0].save(buffer, "PNG")
                write_file(folder / f"{path.stem}.png", buffer.getvalue())
    print(f"{len(paths)} picture{'s' * (len(paths) > 1)} in {options.out}")


def _check_out(out: Path) -> None:
    check_folder(out)
    check_replaceable(out)


def _open(model: str, device: torch.device) -> tuple[FirstStage, AutoencoderSpec]:
    first_stage, spec, _ = load_first_stage(model, device)
    if isinstance(spec.first_stage, IdentityConfig):
        raise UserError(f"checkpoint {model} works on pixels: it has no latents")
    return first_stage, spec


def _pictures(place: str, split: Any, spec: AutoencoderSpec) -> IndexedDataset:
    """Brought to size as in the model's training."""
    if is_remote(place):
        raise UserError(f"{place}: fetch the shards and name their folder")
    config = DataConfig(
        train=place,
        val=place,
        size=spec.size,
        fit=spec.fit,
        channels=spec.first_stage.image_channels,
        background=spec.background,
        depth=spec.depth,
        levels=spec.levels,
    )
    data = open_dataset(config, split, 0)
    assert isinstance(data, IndexedDataset)
    return data


def _normalization(folder: Path) -> LatentNormalization:
    path = folder / ABOUT
    if not path.is_file():
        raise UserError(f"{folder} has no {ABOUT}: name a folder that scripts/encode.py wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    found = content.get("normalization") if isinstance(content, dict) else None
    return build(found, LatentNormalization, f"{path}: normalization")


def _read(path: Path, spec: AutoencoderSpec) -> Tensor:
    """A latent (C, h, w)."""
    try:
        if path.suffix == ".npy":
            latent = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            latent = load_file(path)[KEY]
    except (OSError, ValueError, TypeError, KeyError, EOFError, SafetensorError) as error:
        raise UserError(f"{path} holds no latent ({' '.join(str(error).split())}); encode the picture again, or remove the file") from None
    channels = spec.normalization.channels
    if (
        latent.ndim != 3
        or latent.shape[0] != channels
        or 0 in latent.shape
        or not latent.is_floating_point()
        or not latent.isfinite().all()
    ):
        raise UserError(f"{path}: a latent of this model is ({channels}, h, w) finite floats, got {tuple(latent.shape)} {latent.dtype}")
    return latent.float()
