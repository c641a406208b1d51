"""CompVis's and Stable Diffusion's single files: both stages and the conditioner in one list of tensors, told apart by how names start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.core.errors import UserError
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.interop.autoencoder_keys import autoencoder_keys
from ldm.interop.clip_text import TextTower, read_tower
from ldm.interop.compvis.tables import BESIDE, SCALE, check_tables, stored_scale
from ldm.interop.conditioner_keys import has_nothing, stored_part
from ldm.interop.keymap import KeyMap, check_shape, check_unread
from ldm.interop.recipe import AutoencoderRecipe, Imported, Recipe, assembled, assembled_autoencoder, usual_sampling
from ldm.interop.unet_keys import unet_keys

DENOISER, EMA, FIRST_STAGE, CONDITIONER = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
OF_THE_EMA = ("decay", "num_updates")
CHOSEN = "the {} has the EMA weights (model_ema); passed over: those of the last training step, and how the average was taken"


def import_compvis(tensors: Mapping[str, Tensor], recipe: Recipe | AutoencoderRecipe, path: Path) -> tuple[Imported, TextTower | None]:
    """Our checkpoint of a single file; and the text tower where it has one, whose place the caller must settle.

    Args:
        tensors: of the file.
        recipe: what its config says.
        path: the file's: for errors, and for the name.

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
    beside = check_tables(tensors, recipe.process, path)
    recipe = _scaled(recipe, tensors, path, beside)
    first_stage_keys = _autoencoder_keys(recipe.autoencoder)
    first_stage = first_stage_keys.take(parts[FIRST_STAGE], f"{path}: {FIRST_STAGE}")
    notes = [*beside, *first_stage_keys.notes(parts[FIRST_STAGE], FIRST_STAGE)]

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
    """Refuses what has no place."""
    for name, tensor in tensors.items():
        if not name.startswith((DENOISER, EMA, FIRST_STAGE, CONDITIONER)) and name not in BESIDE:
            raise UserError(f"{path}: {name}, of shape {tuple(tensor.shape)}, has no place in a model of CompVis's code")


def _scaled(recipe: Recipe, tensors: Mapping[str, Tensor], path: Path, notes: list[str]) -> Recipe:
    """With the latents' scale that was measured in training, where the config leaves it to the file."""
    stored = stored_scale(tensors, path)
    if not recipe.scale_is_stored:
        if stored is not None:
            notes.append(f"passed over {SCALE}, {stored:g}: the latents' scale is {recipe.autoencoder.scale:g}")
        return recipe
    if stored is None:
        raise UserError(f"{path}: {SCALE} is missing, and the config says scale_by_std: the latents' scale is not known")
    return recipe.with_scale(stored)


def _chosen(keys: KeyMap, stem: str, last: Mapping[str, Tensor], ema: Mapping[str, Tensor], path: Path, start: str) -> dict[str, Tensor]:
    """A network's weights by our names: the EMA's where there are.

    Args:
        keys: its map.
        stem: what its names start with in the EMA.
        last: its tensors of the last training step, whose names start with `start` in the file; they are checked in any case.
        ema: all that the file has of the EMA; {} = none.
        path: the file's.
    """
    if not ema:
        return keys.take(last, f"{path}: {start}")
    if last:
        keys.take(last, f"{path}: {start}")
    return keys.take(_averaged(ema, keys, stem, path), f"{path}: {EMA}, as ")


def _averaged(ema: Mapping[str, Tensor], keys: KeyMap, stem: str, path: Path) -> dict[str, Tensor]:
    """The EMA's tensors by the names of what they are the averages of: there they have no dots."""
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
    """Empties the conditioner of a model that is told by its first stage: in a file of CompVis's it is that again."""
    if not any(isinstance(config, InpaintMaskConfig) and config.convention == "inpainting_big" for config in recipe.conditioning.values()):
        return
    for name, tensor in parts[CONDITIONER].items():
        original = parts[FIRST_STAGE].get(name)
        if original is None or not torch.equal(tensor, original):
            raise UserError(f"{path}: {CONDITIONER}{name} is not {FIRST_STAGE}{name} again, as the config says (__is_first_stage__)")
    if parts[CONDITIONER]:
        parts[CONDITIONER] = {}
        notes.append(f"passed over {CONDITIONER}*: the first stage again")


def _conditioner(
    recipe: Recipe, theirs: Mapping[str, Tensor], path: Path, notes: list[str]
) -> tuple[dict[str, Tensor], TextTower | None, Recipe]:
    """Weights by our names, or the tower of a frozen encoder; and the recipe, with what is only seen in them."""
    where = f"{path}: {CONDITIONER}"
    mine: dict[str, Tensor] = {}
    claimed = False
    for name, config in recipe.conditioning.items():
        if isinstance(config, ClipPretrainedConfig):
            tower, passed_over = read_tower(theirs, where, CONDITIONER)
            notes += passed_over
            return mine, tower, recipe
        with_nothing = not isinstance(config, ClassLabelConfig) or has_nothing(config, theirs)
        part = stored_part(name, config, recipe.unet.config.context_width or 0, with_nothing=with_nothing)
        if part is None:
            continue
        mine |= part.take(theirs, where)
        notes += part.notes(theirs, CONDITIONER)
        claimed = True
        if not with_nothing:
            recipe = replace(recipe, sampling=replace(usual_sampling(recipe.conditioning), guidance=1.0))
            notes.append(
                "the file has no class for 'nothing': ours is zeros, so guidance is 1 by default: there is nothing to lead away from"
            )
    left = next(iter(theirs), None)
    if left is not None and not claimed:
        raise UserError(f"{where}{left} has no place: the config has no conditioner with weights")
    return mine, None, recipe
