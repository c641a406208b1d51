"""Imports CompVis's and Stable Diffusion's single files: without it the published LDM and Stable Diffusion weights could not be used here.

Both stages and the conditioner are in one list of tensors; the prefix of a name says which part it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.core.errors import UserError
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.interop.autoencoder_keys import autoencoder_keys
from ldm.interop.clip_text import TextTower, read_tower
from ldm.interop.compvis.tables import BESIDE, SCALE, check_tables, stored_scale
from ldm.interop.conditioner_keys import has_null_class, of_kind, stored_part
from ldm.interop.keymap import KeyMap, check_shape, check_unread
from ldm.interop.recipe import AutoencoderRecipe, Imported, Recipe, assembled, assembled_autoencoder, published_sampling
from ldm.interop.unet_keys import unet_keys

DENOISER, EMA, FIRST_STAGE, CONDITIONER = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
OF_THE_EMA = ("decay", "num_updates")
CHOSEN = "the {} has the EMA weights (model_ema); passed over: those of the last training step, and the settings of the average"


def import_compvis(tensors: Mapping[str, Tensor], recipe: Recipe | AutoencoderRecipe, path: Path) -> tuple[Imported, TextTower | None]:
    """Our checkpoint of a single file, and its text tower, if it has one, for which the caller must find or write an encoder.

    Args:
        tensors: of the file.
        recipe: from its config.
        path: the file's, for errors and for the model's name.

    Raises:
        UserError: a tensor missing, left over or broken; another noise schedule than the config's.
    """
    if isinstance(recipe, AutoencoderRecipe):
        keys = _autoencoder_keys(recipe)
        last = {name: tensor for name, tensor in tensors.items() if not name.startswith(EMA)}
        weights = _chosen(keys, "", last, _part(tensors, EMA), path, "")
        notes = keys.notes(last, "")
        if len(last) < len(tensors):
            notes.append(CHOSEN.format("first stage"))
        return assembled_autoencoder(recipe, path.stem, weights, tuple(notes)), None

    parts = {start: _part(tensors, start) for start in (DENOISER, EMA, FIRST_STAGE, CONDITIONER)}
    _check_names(tensors, path)
    table_notes = check_tables(tensors, recipe.process, path)
    recipe = _scaled(recipe, tensors, path, table_notes)
    first_stage_keys = _autoencoder_keys(recipe.autoencoder)
    first_stage = first_stage_keys.take(parts[FIRST_STAGE], f"{path}: {FIRST_STAGE}")
    notes = [*table_notes, *first_stage_keys.notes(parts[FIRST_STAGE], FIRST_STAGE)]

    unet = recipe.unet
    keys = unet_keys(unet.config, unet.in_channels, unet.out_channels, "compvis", is_linear=unet.is_linear)
    denoiser = _chosen(keys, "diffusion_model", parts[DENOISER], parts[EMA], path, DENOISER)
    without = "the file has no EMA weights; the denoiser has those of model.diffusion_model"
    notes.append(CHOSEN.format("denoiser") if parts[EMA] else without)

    _drop_copy_of_first_stage(recipe, parts, path, notes)
    conditioner, tower, recipe = _conditioner(recipe, parts[CONDITIONER], path, notes)
    return assembled(recipe, path.stem, first_stage, denoiser, conditioner, {}, tuple(notes)), tower


def _autoencoder_keys(recipe: AutoencoderRecipe) -> KeyMap:
    assert isinstance(recipe.first_stage, ConvolutionalConfig)
    return autoencoder_keys(recipe.first_stage, "compvis")


def _part(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _check_names(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors that belong to no part."""
    for name, tensor in tensors.items():
        if not name.startswith((DENOISER, EMA, FIRST_STAGE, CONDITIONER)) and name not in BESIDE:
            raise UserError(f"{path}: {name}, of shape {tuple(tensor.shape)}, has no place in a model of CompVis's code")


def _scaled(recipe: Recipe, tensors: Mapping[str, Tensor], path: Path, notes: list[str]) -> Recipe:
    """The recipe with the latents' scale that was measured in training, where the config leaves it to the file."""
    stored = stored_scale(tensors, path)
    if not recipe.scale_is_stored:
        if stored is not None:
            notes.append(f"passed over {SCALE}, {stored:g}: the latents' scale is {recipe.autoencoder.scale:g}")
        return recipe
    if stored is None:
        raise UserError(f"{path}: {SCALE} is missing, and the config sets scale_by_std: the latents' scale is not known")
    return recipe.with_scale(stored)


def _chosen(keys: KeyMap, stem: str, last: Mapping[str, Tensor], ema: Mapping[str, Tensor], path: Path, start: str) -> dict[str, Tensor]:
    """A network's weights by our names: those of the EMA if the file has them.

    Args:
        keys: its key map.
        stem: prefix of its names in the EMA.
        last: its tensors of the last training step; always checked.
        ema: all EMA tensors of the file; {} = none.
        path: the file's.
        start: prefix of the names of `last` in the file.
    """
    if not ema:
        return keys.take(last, f"{path}: {start}")
    if last:
        keys.take(last, f"{path}: {start}")
    return keys.take(_averaged(ema, keys, stem, path), f"{path}: {EMA}, as ")


def _averaged(ema: Mapping[str, Tensor], keys: KeyMap, stem: str, path: Path) -> dict[str, Tensor]:
    """The EMA's tensors by the names of the tensors that they average; in the file the EMA's names lack the dots."""
    dotted = {f"{stem}{name}".replace(".", ""): name for entry in keys.entries for name in entry.theirs}
    unused = tuple(f"{stem}{passed.starts}".replace(".", "") for passed in keys.unused)
    for name, tensor in ema.items():
        where = f"{path}: {EMA}{name}"
        if name in OF_THE_EMA:
            check_shape(tensor, (), where)
        elif name not in dotted and not name.startswith(unused):
            raise UserError(f"{where}, of shape {tuple(tensor.shape)}, has no place in the network that the config describes")
        if name not in dotted:
            check_unread(tensor, where)
    return {dotted[name]: tensor for name, tensor in ema.items() if name in dotted}


def _drop_copy_of_first_stage(recipe: Recipe, parts: dict[str, dict[str, Tensor]], path: Path, notes: list[str]) -> None:
    """Empties the conditioner of a model that is conditioned by its first stage: CompVis's files hold a second copy of the first stage."""
    if all(mask.convention != "inpainting_big" for mask in of_kind(recipe.conditioning, InpaintMaskConfig).values()):
        return
    for name, tensor in parts[CONDITIONER].items():
        original = parts[FIRST_STAGE].get(name)
        if original is None or not torch.equal(tensor, original):
            raise UserError(f"{path}: {CONDITIONER}{name} differs from {FIRST_STAGE}{name}, but the config says __is_first_stage__")
    if parts[CONDITIONER]:
        parts[CONDITIONER] = {}
        notes.append(f"passed over {CONDITIONER}*: a copy of the first stage")


def _conditioner(
    recipe: Recipe, theirs: Mapping[str, Tensor], path: Path, notes: list[str]
) -> tuple[dict[str, Tensor], TextTower | None, Recipe]:
    """Weights by our names, or the tower of a frozen encoder; and the recipe, corrected by what only the weights show."""
    where = f"{path}: {CONDITIONER}"
    if of_kind(recipe.conditioning, ClipPretrainedConfig):
        tower, passed_over = read_tower(theirs, where, CONDITIONER)
        notes += passed_over
        return {}, tower, recipe
    mine: dict[str, Tensor] = {}
    claimed = False
    for name, config in recipe.conditioning.items():
        with_null = has_null_class(config, theirs)
        part = stored_part(name, config, recipe.unet.config.context_width or 0, with_null=with_null)
        if part is None:
            continue
        mine |= part.take(theirs, where)
        notes += part.notes(theirs, CONDITIONER)
        claimed = True
        if not with_null:
            recipe = replace(recipe, sampling=replace(published_sampling(recipe.conditioning), guidance=1.0))
            notes.append("the file has no null class: ours is zeros, and guidance is 1 by default, as the model has no unconditional side")
    unclaimed = next(iter(theirs), None)
    if unclaimed is not None and not claimed:
        raise UserError(f"{where}{unclaimed} has no place: the config has no conditioner with weights")
    return mine, None, recipe
