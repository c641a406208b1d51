"""A foreign checkpoint, whatever it is, to one of our folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ldm.checkpoints.model import LatentDiffusionSpec
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.conditioner import build_conditioners
from ldm.core.errors import UserError
from ldm.interop.clip_text import TextTower, settled
from ldm.interop.compvis.checkpoint import import_compvis
from ldm.interop.compvis.config import read_compvis
from ldm.interop.compvis.stable_diffusion import recipe_of
from ldm.interop.diffusers.importing import import_diffusers
from ldm.interop.foreign_file import read_tensors
from ldm.interop.recipe import Imported
from ldm.interop.settings import PredictionName


def import_checkpoint(
    source: Path,
    out: Path,
    *,
    config: Path | None = None,
    prediction: PredictionName | None = None,
    size: int | None = None,
    text_encoder: str | None = None,
) -> tuple[str, ...]:
    """Writes our checkpoint folder, and where need be a folder with its text encoder beside it; all is checked first.

    Args:
        source: a single file, or a folder of diffusers'.
        out: the checkpoint folder; one that is there is replaced.
        config: the YAML that belongs to a single file; None = a Stable Diffusion file, which is known by its tensors.
        prediction: see `recipe_of`.
        size: of the pictures; None = as config says, or as `recipe_of` has it.
        text_encoder: folder or hub name of the text encoder, or at least of its tokenizer; None = the published one.

    Returns:
        What the user should know.

    Raises:
        UserError: a file that cannot be read or trusted, or that has no counterpart here.
    """
    if source.is_dir():
        for name, given in (("--config", config), ("--prediction", prediction), ("--size", size)):
            if given is not None:
                raise UserError(f"{name} is of single files; {source} is a folder, which says it itself")
        imported, tower = import_diffusers(source)
    else:
        if config is not None and prediction is not None:
            raise UserError("--prediction is of files without a config; the config says it")
        tensors = read_tensors(source)
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
    """Refuses parts that do not go together, before anything is written."""
    if isinstance(imported.spec, LatentDiffusionSpec):
        spec = imported.spec
        with torch.device("meta"):
            others = {name: config for name, config in spec.conditioning.items() if not isinstance(config, ClipPretrainedConfig)}
            latents = spec.first_stage.latent_channels
            concat = build_conditioners(others, context_width=spec.denoiser.context_width, latent_channels=latents).concat_channels
        taken = imported.denoiser["input_blocks.0.0.weight"].shape[1]
        if taken != latents + concat:
            raise UserError(f"the denoiser takes {taken} channels, but the latents have {latents} and its conditioners give {concat}")
        latent_size = spec.size // spec.first_stage.downsampling_factor
        if spec.size % spec.first_stage.downsampling_factor or latent_size % spec.denoiser.size_multiple:
            raise UserError(f"pictures of {spec.size} pixels cannot be halved down to the denoiser's last level")


def _with_encoder(imported: Imported, tower: TextTower, source: str | None, out: Path) -> Imported:
    """With the text encoder's place in the spec, and its digest."""
    spec = imported.spec
    assert isinstance(spec, LatentDiffusionSpec)
    ((name, config),) = ((name, config) for name, config in spec.conditioning.items() if isinstance(config, ClipPretrainedConfig))
    gives = tower.shape.get("hidden_size")
    if spec.denoiser.context_width != gives:
        raise UserError(f"the denoiser attends to tokens of width {spec.denoiser.context_width}; the text encoder gives {gives}")
    others = {encoder: digest for encoder, digest in spec.frozen.items() if encoder != config.model}
    config, note = settled(config, tower, source, out)
    spec = replace(spec, conditioning={**spec.conditioning, name: config})
    parts = build_conditioners({name: config}, context_width=gives, latent_channels=spec.first_stage.latent_channels)
    return replace(imported, spec=spec.with_frozen(others | parts.frozen_digests()), notes=(*imported.notes, note))
