"""Imports any peer's checkpoint into one of our folders: without it, users would have to know the format of each file they downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ldm.checkpoints.folder import MANIFEST
from ldm.checkpoints.lora import is_lora
from ldm.checkpoints.model import LatentDiffusionSpec
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.conditioner import build_conditioners
from ldm.core.errors import UserError
from ldm.core.settings import height_width, in_pixels
from ldm.interop.clip_text import TextTower, with_encoder
from ldm.interop.compvis.checkpoint import import_compvis
from ldm.interop.compvis.config import read_compvis
from ldm.interop.compvis.stable_diffusion import recipe_of
from ldm.interop.conditioner_keys import of_kind
from ldm.interop.diffusers.importing import import_diffusers
from ldm.interop.foreign_file import read_tensors
from ldm.interop.lora.export import FILE as LORA_FILE
from ldm.interop.recipe import Imported
from ldm.interop.settings import PredictionName

NO_LORA = "LoRAs are not imported; they are trained here (lora.rank=8) and exported"


def import_checkpoint(
    source: Path,
    out: Path,
    *,
    config: Path | None = None,
    prediction: PredictionName | None = None,
    size: int | None = None,
    text_encoder: str | None = None,
) -> tuple[str, ...]:
    """Writes our checkpoint folder and, if needed, a folder with its text encoder beside it. Everything is checked first.

    Args:
        source: a single file, or a diffusers folder.
        out: the checkpoint folder; an existing one is replaced.
        config: the YAML of a single file; None = a Stable Diffusion file, which is recognised by its tensors.
        prediction: see `recipe_of`.
        size: side of the images, in pixels; None = the config's, or that of `recipe_of`.
        text_encoder: folder or hub name of the text encoder, or at least of its tokenizer; None = the published one.

    Returns:
        Notes for the user.

    Raises:
        UserError: a file that cannot be read or trusted, or that has no counterpart here.
    """
    if source.is_dir():
        for name, given in (("--config", config), ("--prediction", prediction), ("--size", size)):
            if given is not None:
                raise UserError(f"{name} is for single files; {source} is a folder, whose config files set it")
        if (source / MANIFEST).is_file():
            what = NO_LORA if is_lora(source) else "it is used as it is: --model, first_stage.checkpoint= or init_from="
            raise UserError(f"{source} is a checkpoint of this tool, and import takes other tools': {what}")
        if (source / LORA_FILE).is_file():
            raise UserError(f"{source}: {NO_LORA}")
        imported, tower = import_diffusers(source)
    else:
        if config is not None and prediction is not None:
            raise UserError("--prediction is for files without a config; the config sets it")
        tensors = read_tensors(source)
        if any("lora" in name for name in tensors):
            raise UserError(f"{source}: {NO_LORA}")
        recipe = recipe_of(tensors, source, prediction) if config is None else read_compvis(config)
        if size is not None:
            recipe = recipe.of_size(size)
        imported, tower = import_compvis(tensors, recipe, source)
    _check_parts(imported)
    if tower is not None:
        imported = _with_encoder(imported, tower, text_encoder, out.with_name(f"{out.name}-text-encoder"))
    imported.write(out, source.name)
    return imported.notes


def _check_parts(imported: Imported) -> None:
    """Refuses parts that do not fit together, before anything is written."""
    if isinstance(imported.spec, LatentDiffusionSpec):
        spec = imported.spec
        with torch.device("meta"):
            encoders = of_kind(spec.conditioning, ClipPretrainedConfig)  # not needed: they add no channels
            others = {name: config for name, config in spec.conditioning.items() if name not in encoders}
            latents = spec.first_stage.latent_channels
            concat = build_conditioners(others, context_width=spec.denoiser.context_width, latent_channels=latents).concat_channels
        taken = imported.denoiser["input_blocks.0.0.weight"].shape[1]
        if taken != latents + concat:
            raise UserError(f"the denoiser takes {taken} channels, but the latents have {latents} and its conditioners add {concat}")
        if any(side % spec.size_multiple for side in height_width(spec.size)):
            raise UserError(f"pictures of {in_pixels(spec.size)} cannot be halved down to the denoiser's last level")


def _with_encoder(imported: Imported, tower: TextTower, source: str | None, out: Path) -> Imported:
    """The checkpoint with the text encoder's folder or name, and its digest, in the spec."""
    spec = imported.spec
    assert isinstance(spec, LatentDiffusionSpec)
    ((name, config),) = of_kind(spec.conditioning, ClipPretrainedConfig).items()
    width = tower.shape.get("hidden_size")
    if spec.denoiser.context_width != width:
        raise UserError(f"the denoiser attends to tokens of width {spec.denoiser.context_width}; the text encoder gives {width}")
    others = {encoder: digest for encoder, digest in spec.frozen.items() if encoder != config.model}
    config, note = with_encoder(config, tower, source, out)
    spec = replace(spec, conditioning={**spec.conditioning, name: config})
    parts = build_conditioners({name: config}, context_width=width, latent_channels=spec.first_stage.latent_channels)
    return replace(imported, spec=spec.with_frozen(others | parts.frozen_digests()), notes=(*imported.notes, note))
