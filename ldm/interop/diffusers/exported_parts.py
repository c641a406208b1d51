"""Imports the folders of parts that our export writes: without it a model that no pipeline runs could not return after work in diffusers.

Beside diffusers' folders such a folder has our config of the model, as theirs cannot express all, and the conditioners' small tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.formats import upgraded
from ldm.checkpoints.model import LatentDiffusionSpec
from ldm.conditioning.bert_pretrained import BertPretrainedConfig
from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.conditioning.boxes import BoxesConfig
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.conditioner import build_conditioners
from ldm.conditioning.transformer import TransformerConfig
from ldm.core.errors import UserError
from ldm.core.settings import each_side
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.first_stage.latent_normalization import encoder_digest, weights_digest
from ldm.interop.clip_text import TextTower
from ldm.interop.conditioner_keys import of_kind, transformer_size
from ldm.interop.diffusers.folder import read_autoencoder, read_clip, read_weights
from ldm.interop.diffusers.parts import SizedAutoencoder, autoencoder_json, transformer_json
from ldm.interop.diffusers.scheduler import scheduler_json
from ldm.interop.diffusers.unet import sized_unet, unet_json
from ldm.interop.foreign_config import must_be, must_be_few, read_foreign, read_json, read_yaml, shown
from ldm.interop.foreign_file import read_tensors
from ldm.interop.keymap import SAME, Entry, KeyMap
from ldm.interop.ours import Ours, check_kinds
from ldm.interop.recipe import Imported
from ldm.interop.transformer_keys import transformer_keys
from ldm.interop.unet_keys import unet_keys
from ldm.networks.unet import UNetConfig

CONFIG, SMALL = "config.yaml", "conditioner.safetensors"


def is_of_parts(folder: Path) -> bool:
    """Whether a folder is one of parts."""
    return (folder / CONFIG).is_file() and (folder / "unet").is_dir()


def small_names(names: Iterable[str]) -> list[str]:
    """The conditioners' tensors outside of transformers: tables, projections."""
    return [name for name in names if name.split(".")[2] != "encoder"]


def import_parts(folder: Path) -> tuple[Imported, TextTower | None]:
    """Our checkpoint of a folder, and its CLIP text tower, if it has one, for which the caller must find or write an encoder.

    Raises:
        UserError: config.yaml is not one of ours, or not that of the parts; a tensor missing, left over or broken.
    """
    spec = _read_spec(folder / CONFIG)
    assert isinstance(spec.denoiser, UNetConfig) and isinstance(spec.first_stage, ConvolutionalConfig)
    scheduler, _ = scheduler_json(spec.process, spec.prediction, spec.sampling)
    _must_agree(folder / "scheduler" / "scheduler_config.json", scheduler)
    autoencoder = SizedAutoencoder(
        config=spec.first_stage, scale=spec.normalization.scale[0], shift=spec.normalization.shift[0], size=spec.size
    )
    _must_agree(folder / "vae" / "config.json", autoencoder_json(autoencoder))
    _, first_stage = read_autoencoder(folder / "vae")

    where = folder / "unet" / "config.json"
    unet = sized_unet(read_json(where), str(where))
    factor = spec.first_stage.downsampling_factor
    unet = replace(unet, config=spec.denoiser, sample_size=each_side(spec.size, lambda side: side // factor))
    must_be(str(where), "out_channels", unet.out_channels, spec.first_stage.latent_channels)
    _must_agree(where, unet_json(unet, sets_heads=True))
    keys = unet_keys(spec.denoiser, unet.in_channels, unet.out_channels, "diffusers", is_linear=unet.is_linear)
    denoiser = keys.take(read_weights(folder / "unet"), f"{folder}/unet: ")

    notes = []
    digest = weights_digest(first_stage)
    if digest != spec.normalization.digest:
        spec = replace(spec, normalization=replace(spec.normalization, digest=digest, encoder=encoder_digest(first_stage)))
        notes.append("the first stage is not the one that was exported; the scale of its latents is assumed to be unchanged")
    conditioner = _small(folder, spec)
    tower = None
    for name, config in spec.conditioning.items():
        match config:
            case BertScratchConfig() | BoxesConfig():
                size = transformer_size(config)
                _must_agree(folder / name / "config.json", transformer_json(config, *size))
                transformer, theirs = transformer_keys(config, *size, "diffusers"), read_weights(folder / name)
                conditioner |= {f"parts.{name}.encoder.{key}": t for key, t in transformer.take(theirs, f"{folder}/{name}: ").items()}
                notes += transformer.notes(theirs, f"{name} ")
            case ClipPretrainedConfig():
                if tower is not None:
                    raise UserError(f"{folder}: has several CLIP text encoders; one can be imported")
                tower, passed_over = read_clip(folder / name, folder / f"{name}-tokenizer")
                notes += passed_over
                # The export wrote the tower up to the layer that is read, which is therefore the last.
                spec = replace(spec, conditioning={**spec.conditioning, name: replace(config, layer="last")})
    ours = Ours(spec=spec, first_stage=first_stage, denoiser=denoiser, conditioner=conditioner)
    for name, bert in ours.conditioners_of(BertPretrainedConfig).items():
        _check_bert(folder / name, bert, ours)
    return Imported(spec=spec, first_stage=first_stage, denoiser=denoiser, conditioner=conditioner, notes=tuple(notes)), tower


def _read_spec(path: Path) -> LatentDiffusionSpec:
    """The model's spec; refuses kinds that cannot be exported, and sizes beyond those of any real network."""
    spec = read_foreign(upgraded(read_yaml(path)), LatentDiffusionSpec, str(path))
    check_kinds(spec, str(path))
    assert isinstance(spec.denoiser, UNetConfig) and isinstance(spec.first_stage, ConvolutionalConfig)
    for part, counts in (
        ("denoiser.blocks", spec.denoiser.blocks),
        ("denoiser.multipliers", spec.denoiser.multipliers),
        ("denoiser.transformer_depth", spec.denoiser.transformer_depth),
        ("first_stage.blocks", spec.first_stage.blocks),
        ("first_stage.multipliers", spec.first_stage.multipliers),
    ):
        must_be_few(str(path), part, counts)
    for name, config in spec.conditioning.items():
        match config:
            case TransformerConfig():
                must_be_few(str(path), f"conditioning.{name}.depth", config.depth)
    return spec


def _must_agree(path: Path, wanted: Mapping[str, Any]) -> None:
    """Refuses a part's config that disagrees with ours, for example because the part was exchanged for another model's."""
    found = read_json(path)
    for key, value in json.loads(json.dumps(wanted)).items():
        if found.get(key) != value:
            raise UserError(f"{path}: {key} is {shown(found.get(key))}, but by {CONFIG} it is {shown(value)}: they are of different models")


def _small(folder: Path, spec: LatentDiffusionSpec) -> dict[str, Tensor]:
    """The conditioners' tensors outside of their encoders' folders."""
    encoders = of_kind(spec.conditioning, ClipPretrainedConfig)  # they have no such tensors
    others = {name: config for name, config in spec.conditioning.items() if name not in encoders}
    with torch.device("meta"):
        latents = spec.first_stage.latent_channels
        shapes = build_conditioners(others, context_width=spec.denoiser.context_width, latent_channels=latents).state_dict()
    keys = KeyMap(tuple(Entry(name, shapes[name].shape, (name,), SAME) for name in small_names(shapes)))
    path = folder / SMALL
    return keys.take(read_tensors(path) if path.exists() or keys.entries else {}, f"{path}: ")


def _check_bert(folder: Path, config: BertPretrainedConfig, ours: Ours) -> None:
    """Refuses an encoder, loaded or in the folder, that the model was not trained with: checkpoints do not store its weights."""
    part = config.build(context_width=ours.spec.denoiser.context_width, latent_channels=1)
    ours.check_frozen(part)
    at_hand, theirs = part.frozen.encoder.state_dict(), read_weights(folder)
    for name in at_hand.keys() | theirs.keys():
        if name not in at_hand or name not in theirs or not torch.equal(at_hand[name], theirs[name].to(at_hand[name].dtype)):
            raise UserError(f"{folder}: {name} is not that of {config.model}; a changed encoder of this kind cannot be imported")
