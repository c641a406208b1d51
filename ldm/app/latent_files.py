"""Latents in files, with the latent normalization that they have.

A folder of latents has `latents.json` (the model's name, the latent normalization, and the pictures by file) and a file a picture:
`NAME.safetensors` with the tensor `latent` and the same normalization among its metadata, or `NAME.npy`. A latent is (C, h, w) float32, as
stage two sees it, about mean 0 and std 1: latent = (raw - shift) * scale. It is the posterior's mean.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldm.app.sampling_run import check_folder
from ldm.checkpoints.model import AutoencoderSpec, load_first_stage
from ldm.config.loader import UNREADABLE, build
from ldm.core.errors import UserError
from ldm.core.ownership import check_replaceable
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.first_stage.stage import FirstStage

ABOUT = "latents.json"
KEY = "latent"  # of the tensor in a safetensors file
SUFFIXES = (".safetensors", ".npy")


def check_out(out: Path) -> None:
    """Refuses, before any work, a folder that could not be written or is not this tool's."""
    check_folder(out)
    check_replaceable(out)


def open_first_stage(model: str, device: torch.device) -> tuple[FirstStage, AutoencoderSpec]:
    """The first stage of a checkpoint, and its spec.

    Raises:
        UserError: see `load_first_stage`; a model of pixels.
    """
    first_stage, spec, _ = load_first_stage(model, device)
    if isinstance(spec.first_stage, IdentityConfig):
        raise UserError(f"checkpoint {model} works on pixels: it has no latents")
    return first_stage, spec


def normalization_of(folder: Path) -> LatentNormalization:
    """That of a folder of latents.

    Raises:
        UserError: no such folder, or a damaged one.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise UserError(f"{folder} has no {ABOUT}: name a folder that scripts/encode.py wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    found = content.get("normalization") if isinstance(content, dict) else None
    return build(found, LatentNormalization, f"{path}: normalization")


def read_latent(path: Path, spec: AutoencoderSpec) -> Tensor:
    """A latent (C, h, w) float32.

    Raises:
        UserError: not one of this model's.
    """
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
