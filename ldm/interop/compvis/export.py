"""Writes our checkpoint as a CompVis single file and its YAML: without it models trained here would not open in ComfyUI and similar tools.

Such tools recognise Stable Diffusion by its tensors; a note says whether they open the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ldm.checkpoints.folder import save_archive, save_tensors
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.core.errors import UserError
from ldm.core.files import Outputs
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.interop.autoencoder_keys import autoencoder_keys
from ldm.interop.clip_text import PT, TextTower, give_tower
from ldm.interop.compvis.checkpoint import CONDITIONER, DENOISER, FIRST_STAGE
from ldm.interop.compvis.stable_diffusion import SCALE
from ldm.interop.compvis.tables import tables_of
from ldm.interop.compvis.yaml import is_conditioned_by_first_stage, is_linear_for, process_of, unet_of, yaml_of
from ldm.interop.conditioner_keys import TRANSFORMER, stored_part
from ldm.interop.latent_scale import scaled_for_peer
from ldm.interop.ours import Ours
from ldm.interop.transformer_keys import WORD_OUTPUT
from ldm.interop.unet_keys import unet_keys

KNOWN_CHANNELS = 320
KNOWN_TEXT = {(768, False): 8, (1024, True): 64}  # (token width, is open_clip's) -> number of heads (version 1), width of a head (2)


def export_compvis(ours: Ours, out: Path) -> tuple[str, ...]:
    """Writes the file, `.safetensors` or `.ckpt`, and beside it the YAML of the same name.

    Returns:
        Notes for the user.

    Raises:
        UserError: what CompVis's code cannot represent; another suffix; a file of that name that this tool did not write.
    """
    if out.suffix not in (".safetensors", ".ckpt"):
        raise UserError(f"--out {out}: a single file ends in .safetensors or .ckpt")
    outputs = Outputs(out.parent)
    outputs.check(out.name, out.with_suffix(".yaml").name)
    tensors, config, notes = compvis_of(ours)
    with outputs.new_file(out.name) as temporary:
        if out.suffix == ".ckpt":
            # Clones: for a memory-mapped tensor torch.save would write the whole file behind it.
            clones = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
            save_archive(temporary, {"state_dict": clones})
        else:
            save_tensors(temporary, {name: tensor.contiguous() for name, tensor in tensors.items()}, PT)
    outputs.write({out.with_suffix(".yaml").name: yaml.safe_dump(config, sort_keys=False)})
    return notes


def compvis_of(ours: Ours) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """All tensors by CompVis's names, the YAML's content, and notes for the user.

    Raises:
        UserError: what CompVis's code cannot represent.
    """
    spec = ours.spec
    tower = _tower(ours)
    peer_scale = None if tower is None else SCALE  # the fixed scale of tools that recognise Stable Diffusion by its tensors
    peer_scale = 1.0 if is_conditioned_by_first_stage(ours) else peer_scale  # CompVis's code does not scale that condition
    weights, scale, notes = scaled_for_peer(ours.autoencoder, spec.normalization, ours.first_stage, peer_scale)
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
    """The note on whether tools that recognise Stable Diffusion by its tensors, such as ComfyUI, open the file correctly."""
    config, process = unet_of(ours), ours.spec.process
    faults = []
    if tower is None or config.channels != KNOWN_CHANNELS or (config.context_width or 0, tower.is_open) not in KNOWN_TEXT:
        faults.append("by its sizes it is not Stable Diffusion 1 or 2")
    elif (config.head_width if tower.is_open else config.heads) != KNOWN_TEXT[config.context_width or 0, tower.is_open]:
        faults.append("it has other attention heads")
    if process != DiscreteVP():
        faults.append("it has another noise schedule")
    if tower is not None and not tower.is_open and ours.spec.prediction.kind != "eps":
        faults.append("they assume that version 1 predicts eps")
    return (
        f"CompVis's code opens it with its YAML; ComfyUI and similar tools do not: {', '.join(faults)}"
        if faults
        else "opens in ComfyUI and similar tools; CompVis's code opens it with its YAML"
    )


def _tower(ours: Ours) -> TextTower | None:
    """The frozen text tower, if there is one; version 2's readers use the output before the last layer."""
    for config in ours.conditioners_of(ClipPretrainedConfig).values():
        tower = ours.text_tower(config)
        return tower.with_idle_layer() if tower.is_open and config.layer == "last" else tower
    return None


def _conditioner(ours: Ours, tower: TextTower | None) -> dict[str, Tensor]:
    """The conditioner's weights, including those of a frozen text tower."""
    if tower is not None:
        return give_tower(tower)
    for name, config in ours.spec.conditioning.items():
        stored = stored_part(name, config, ours.unet().config.context_width or 0)
        if stored is not None:
            given = stored.give(ours.conditioner)
            return given | _word_output(given)
    return {}


def _word_output(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """For a transformer, the layer that predicts words, as zeros: CompVis's code requires it, and no image depends on it."""
    words = given.get(f"{TRANSFORMER}token_emb.weight")
    if words is None:
        return {}
    start = f"{TRANSFORMER}{WORD_OUTPUT}"
    return {f"{start}weight": torch.zeros_like(words), f"{start}bias": words.new_zeros(len(words))}
