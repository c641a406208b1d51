"""A LoRA on disk: a folder of a few megabytes that holds what fine-tuning changed, and loading a model with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.folder import Checkpoint, checkpoint_folder, load_strictly, read_again, write_checkpoint
from ldm.checkpoints.model import LatentDiffusionSpec, LoadedParts, denoiser_digest, load_latent_diffusion
from ldm.config.loader import to_yaml
from ldm.core.errors import UserError
from ldm.core.settings import Precision
from ldm.networks.lora import Lora, merged

PART = "lora"  # name of its file, and of the folder that a run writes it to
NEWEST = "checkpoint"  # name of the folder of a run's newest model


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """
    Attributes:
        name: of the run.
        base: the spec of the model that it changes, as in that model's own checkpoint.
        base_digest: `denoiser_digest` of that checkpoint; the LoRA fits no other.
        lora: rank, scale and layers.
    """

    name: str
    base: LatentDiffusionSpec
    base_digest: str
    lora: Lora


@dataclass(frozen=True, kw_only=True)
class LoadedLora:
    """A LoRA from a folder; for its tensors see `Adapters.tensors`."""

    spec: LoraSpec
    tensors: dict[str, Tensor]


def write_lora(folder: Path, spec: LoraSpec, tensors: dict[str, Tensor], card: str) -> None:
    """Writes a LoRA's checkpoint folder."""
    write_checkpoint(folder, to_yaml(spec), {PART: tensors}, card)


def beside(checkpoint: Path) -> Path:
    """The folder of a run's LoRA for one of its checkpoints: `lora` beside the newest, `step-000500-lora` beside one that is kept."""
    return checkpoint.with_name(PART if checkpoint.name == NEWEST else f"{checkpoint.name}-{PART}")


def is_lora(folder: Path | str) -> bool:
    """Whether a checkpoint folder holds a LoRA.

    Raises:
        UserError: not a checkpoint.
    """
    return Checkpoint.open(folder, verified=False).has(PART)


@read_again
def load_lora(folder: Path | str) -> LoadedLora:
    """A LoRA from its folder.

    Raises:
        UserError: not a checkpoint; altered; not of a LoRA.
    """
    where = f"a run of scripts/train_ldm.py with lora writes one to its RUN_DIR/{PART}"
    if not checkpoint_folder(folder).exists():
        raise UserError(f"LoRA {folder}: no such folder; {where}")
    opened = Checkpoint.open(folder)
    if not opened.has(PART):
        raise UserError(f"checkpoint {folder} holds no LoRA; {where}")
    return LoadedLora(spec=opened.spec(LoraSpec), tensors=opened.tensors(PART))


@read_again
def load_with_lora(folder: Path | str, lora: Path | str, scale: float, device: torch.device, precision: Precision = "fp32") -> LoadedParts:
    """Both stages from a checkpoint folder, changed by a LoRA.

    Args:
        folder: of the base.
        lora: folder of the LoRA.
        scale: its strength: 0 = no effect, 1 = as trained; finite.
        device: for the model.
        precision: see `load_latent_diffusion`; the weights are added before they are converted to it.

    Raises:
        UserError: a LoRA of another base; see `load_latent_diffusion` and `load_lora`.
    """
    if not math.isfinite(scale):
        raise UserError(f"the scale of a LoRA must be a finite number, got {scale}")
    parts, change = load_latent_diffusion(folder, device, precision), load_lora(lora)
    found = denoiser_digest(folder)
    if found != change.spec.base_digest:
        raise UserError(
            f"LoRA {lora} was trained on another base ({change.spec.base.name}, denoiser {change.spec.base_digest[:12]}) than "
            f"{folder} (denoiser {found[:12]}); give the checkpoint that it was trained on"
        )
    weights = merged(Checkpoint.open(folder, verified=False).tensors("denoiser"), change.tensors, scale * change.spec.lora.scale)
    load_strictly(parts.network, weights, f"LoRA {lora}")
    parts.network.to(device)
    return parts
