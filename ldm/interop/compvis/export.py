"""Our checkpoint as a single file of CompVis's and Stable Diffusion's, with the YAML that describes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ldm.checkpoints.folder import save_tensors
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.transformer import TransformerConfig
from ldm.core.errors import UserError
from ldm.core.files import sync, write_file
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.interop.autoencoder_keys import autoencoder_keys
from ldm.interop.clip_text import PT, TextTower, give_tower
from ldm.interop.compvis.checkpoint import CONDITIONER, DENOISER, FIRST_STAGE
from ldm.interop.compvis.stable_diffusion import SCALE
from ldm.interop.compvis.tables import tables_of
from ldm.interop.compvis.yaml import is_linear_for, is_told_by_first_stage, process_of, unet_of, yaml_of
from ldm.interop.conditioner_keys import stored_part
from ldm.interop.latent_scale import scaled_for_peer
from ldm.interop.ours import Ours
from ldm.interop.transformer_keys import WORD_OUTPUT
from ldm.interop.unet_keys import unet_keys

KNOWN_CHANNELS = 320
KNOWN_TEXT = {(768, False): 8, (1024, True): 64}  # width of the tokens, and whether open_clip's: heads of version 1, their width of 2


def export_compvis(ours: Ours, out: Path) -> tuple[str, ...]:
    """Writes the file, `.safetensors` or `.ckpt`, and beside it the YAML of the same name.

    Returns:
        What the user should know.

    Raises:
        UserError: what CompVis's code cannot represent; another suffix.
    """
    if out.suffix not in (".safetensors", ".ckpt"):
        raise UserError(f"--out {out}: a single file ends in .safetensors or .ckpt")
    tensors, config, notes = compvis_of(ours)
    with whole(out) as temporary:
        if out.suffix == ".ckpt":
            # Clones: of a mapped tensor torch.save would write the whole file that it is mapped from.
            clones = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
            torch.save({"state_dict": clones}, temporary)
        else:
            save_tensors(temporary, {name: tensor.contiguous() for name, tensor in tensors.items()}, PT)
    write_file(out.with_suffix(".yaml"), yaml.safe_dump(config, sort_keys=False))
    return notes


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def compvis_of(ours: Ours) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """All tensors by CompVis's names, the YAML's content, and what the user should know.

    Raises:
        UserError: what CompVis's code cannot represent.
    """
    spec = ours.spec
    tower = _tower(ours)
    left = None if tower is None else SCALE  # which tools that know Stable Diffusion by its tensors take for granted
    left = 1.0 if is_told_by_first_stage(ours) else left  # what that one gives is not scaled there
    weights, scale, notes = scaled_for_peer(ours.autoencoder, spec.normalization, ours.first_stage, left)
    config = yaml_of(ours, tower, scale)
    is_linear = is_linear_for(tower)
    unet = ours.unet(is_linear=is_linear)
    keys = unet_keys(unet.config, unet.in_channels, unet.out_channels, "compvis", is_linear=is_linear)
    tensors = {DENOISER + name: tensor for name, tensor in keys.give(ours.denoiser).items()}
    autoencoder = autoencoder_keys(ours.autoencoder, "compvis").give(weights)
    tensors |= {FIRST_STAGE + name: tensor for name, tensor in autoencoder.items()}
    tensors |= {CONDITIONER + name: tensor for name, tensor in _conditioner(ours, tower).items()}
    process = process_of(ours)
    tensors |= tables_of(process)
    return tensors, config, (*notes, _who_opens(ours, tower))


def _who_opens(ours: Ours, tower: TextTower | None) -> str:
    """Whether tools that know Stable Diffusion by its tensors, as ComfyUI does, take the file for what it is."""
    config, process = unet_of(ours), ours.spec.process
    faults = []
    if tower is None or config.channels != KNOWN_CHANNELS or (config.context_width or 0, tower.is_open) not in KNOWN_TEXT:
        faults.append("it is no Stable Diffusion 1 or 2 by its sizes")
    elif (config.head_width if tower.is_open else config.heads) != KNOWN_TEXT[config.context_width or 0, tower.is_open]:
        faults.append("it has other attention heads")
    if process != DiscreteVP():
        faults.append("it has another noise schedule")
    if tower is not None and not tower.is_open and ours.spec.prediction.kind != "eps":
        faults.append("they take it that version 1 predicts eps")
    return (
        f"CompVis's code opens it with its YAML; ComfyUI and its like do not: {', '.join(faults)}"
        if faults
        else "opens in ComfyUI and its like; CompVis's code opens it with its YAML"
    )


def _tower(ours: Ours) -> TextTower | None:
    """The frozen text tower, where there is one; in version 2 its reader takes what comes before the last layer."""
    for config in ours.told_by(ClipPretrainedConfig).values():
        tower = ours.text_tower(config)
        return tower.with_idle_layer() if tower.is_open and config.layer == "last" else tower
    return None


def _conditioner(ours: Ours, tower: TextTower | None) -> dict[str, Tensor]:
    """Its weights, the frozen text tower's included."""
    if tower is not None:
        return give_tower(tower)
    for name, config in ours.spec.conditioning.items():
        stored = stored_part(name, config, ours.unet().config.context_width or 0)
        if stored is not None:
            given = stored.give(ours.conditioner)
            if isinstance(config, TransformerConfig):
                given |= _word_output(stored.theirs, given)
            return given
    return {}


def _word_output(start: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layer that CompVis's transformer has for predicting words, as zeros: its code wants it, and no picture depends on it."""
    words = given[f"{start}token_emb.weight"]
    return {f"{start}{WORD_OUTPUT}weight": torch.zeros_like(words), f"{start}{WORD_OUTPUT}bias": words.new_zeros(len(words))}
