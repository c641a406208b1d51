"""Reads one part of a diffusers folder: without it folders with split weights or names from before 0.16 could not be imported.

A part is a folder with a config and weights.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from ldm.core.errors import UserError
from ldm.interop.autoencoder_keys import autoencoder_keys
from ldm.interop.clip_text import SHAPE, TextShape, TextTower, tower_keys
from ldm.interop.diffusers.parts import SizedAutoencoder, sized_autoencoder
from ldm.interop.diffusers.unet import NORM_EPS
from ldm.interop.foreign_config import must_be, read_foreign, read_json, shown
from ldm.interop.foreign_file import read_tensors

WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin")
OLD_ATTENTION = re.compile(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
SINCE_016 = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of plain attention's modules, in UNets and autoencoders: before diffusers 0.16 -> since then."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a part, in one file or several, by the names of diffusers 0.16 and later.

    Raises:
        UserError: it has no weights, or they cannot be read.
    """
    theirs = _stored(folder)
    return {_since_016(name, theirs): tensor for name, tensor in theirs.items()}


def _since_016(name: str, all_names: dict[str, Tensor]) -> str:
    """A tensor's name since 0.16; the old one if the file has both, so that neither is lost."""
    old = OLD_ATTENTION.fullmatch(name)
    newer = f"{old[1]}.{SINCE_016[old[2]]}.{old[3]}" if old else name
    return name if newer in all_names else newer


def _stored(folder: Path) -> dict[str, Tensor]:
    for name in WEIGHTS:
        if (folder / f"{name}.index.json").is_file():
            where = read_json(folder / f"{name}.index.json").get("weight_map")
            pieces = sorted(set(map(str, where.values()))) if isinstance(where, dict) else []
            outside = [piece for piece in pieces if Path(piece).name != piece]
            if outside or not pieces:
                raise UserError(f"{folder}/{name}.index.json: names {', '.join(outside) or 'no file'}; must name files beside it")
            return {key: tensor for piece in pieces for key, tensor in read_tensors(folder / piece).items()}
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise UserError(f"{folder}: has no weights; one of {', '.join(WEIGHTS)} is needed")


def read_autoencoder(folder: Path) -> tuple[SizedAutoencoder, dict[str, Tensor]]:
    """An autoencoder and its weights by our names.

    Raises:
        UserError: its network does not exist here; a tensor missing, left over or broken.
    """
    found = sized_autoencoder(read_json(folder / "config.json"), f"{folder}/config.json")
    return found, autoencoder_keys(found.config, "diffusers").take(read_weights(folder), f"{folder}: ")


def read_clip(folder: Path, tokenizer: Path) -> tuple[TextTower, list[str]]:
    """CLIP's text tower with its tokenizer's folder, and notes on tensors that are passed over.

    Raises:
        UserError: not a CLIP text encoder; a tensor missing, left over or broken.
    """
    content = read_json(folder / "config.json")
    if content.get("architectures") != ["CLIPTextModel"]:
        raise UserError(f"{folder}: architectures is {shown(content.get('architectures'))}; CLIPTextModel can be imported")
    where = f"{folder}/config.json"
    shape = vars(read_foreign({key: content[key] for key in SHAPE if key in content}, TextShape, where))
    must_be(where, "layer_norm_eps", content.get("layer_norm_eps", NORM_EPS), NORM_EPS)
    theirs = {name.removeprefix("text_model."): tensor for name, tensor in read_weights(folder).items()}
    keys = tower_keys(shape)
    return TextTower(shape, keys.take(theirs, f"{folder}: "), tokenizer), keys.notes(theirs, f"{folder.name} ")
