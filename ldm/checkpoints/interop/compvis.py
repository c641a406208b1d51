"""CompVis's and Stable Diffusion's single files: both stages and the conditioner in one list of tensors, told apart by how names start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.interop.autoencoder_keys import autoencoder_keys
from ldm.checkpoints.interop.clip_text import TextTower, read_tower
from ldm.checkpoints.interop.conditioner_keys import has_nothing, stored_part
from ldm.checkpoints.interop.keymap import KeyMap, check_numbers
from ldm.checkpoints.interop.recipe import AutoencoderRecipe, Imported, Recipe, assembled, assembled_autoencoder, usual_sampling
from ldm.checkpoints.interop.unet_keys import unet_keys
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.core.errors import UserError
from ldm.first_stage.convolutional import ConvolutionalConfig

DENOISER, EMA, FIRST_STAGE, CONDITIONER = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
OF_THE_EMA = ("decay", "num_updates")
TABLES = (  # of the noise schedule, which the config says
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights",
)  # fmt: skip
UNUSED = {"logvar": "of training", "cond_ids": "of training", "scale_factor": "read"}


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
        notes = [f"passed over {start}*: {reason}" for start, reason in keys.passed_over(tensors).items()]
        return assembled_autoencoder(recipe, path.stem, keys.take(tensors, f"{path}: "), tuple(notes)), None

    parts = {start: _part(tensors, start) for start in (DENOISER, EMA, FIRST_STAGE, CONDITIONER)}
    _check_rest(tensors, recipe, path)
    recipe = _scaled(recipe, tensors, path)
    first_stage_keys = _autoencoder_keys(recipe.autoencoder)
    first_stage = first_stage_keys.take(parts[FIRST_STAGE], f"{path}: {FIRST_STAGE}")
    notes = [f"passed over {FIRST_STAGE}{start}*: {reason}" for start, reason in first_stage_keys.passed_over(parts[FIRST_STAGE]).items()]

    unet = recipe.unet
    keys = unet_keys(unet.config, unet.in_channels, unet.out_channels, "compvis", is_linear=unet.is_linear)
    if parts[EMA]:
        averaged = _averaged(parts[EMA], keys, path)
        denoiser = keys.take(averaged, f"{path}: {EMA}, as ")
        notes.append("the denoiser has the EMA weights (model_ema); those of the last training step are passed over")
    else:
        denoiser = keys.take(parts[DENOISER], f"{path}: {DENOISER}")
        notes.append("the file has no EMA weights; the denoiser has those of model.diffusion_model")

    _drop_copy_of_first_stage(recipe, parts, path, notes)
    conditioner, tower, recipe = _conditioner(recipe, parts[CONDITIONER], path, notes)
    return assembled(recipe, path.stem, first_stage, denoiser, conditioner, {}, tuple(notes)), tower


def _autoencoder_keys(recipe: AutoencoderRecipe) -> KeyMap:
    assert isinstance(recipe.first_stage, ConvolutionalConfig)
    return autoencoder_keys(recipe.first_stage, "compvis")


def _part(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _check_rest(tensors: Mapping[str, Tensor], recipe: Recipe, path: Path) -> None:
    """Refuses what has no place, and tables of another noise schedule than the config's."""
    for name, tensor in tensors.items():
        if name.startswith((DENOISER, EMA, FIRST_STAGE, CONDITIONER)) or name in TABLES or name in UNUSED:
            continue
        raise UserError(f"{path}: {name}, of shape {tuple(tensor.shape)}, has no place in a model of CompVis's code")
    stored = tensors.get("alphas_cumprod")
    if stored is not None:
        steps = recipe.process.num_steps
        wanted = recipe.process.alpha(torch.arange(1, steps + 1, dtype=torch.float64) / steps).square()
        if stored.shape != wanted.shape or not torch.allclose(stored.double(), wanted, rtol=1e-2, atol=1e-5):
            raise UserError(
                f"{path}: alphas_cumprod is of another noise schedule than the config's (config keys timesteps, beta_schedule, "
                f"linear_start, linear_end)"
            )


def _scaled(recipe: Recipe, tensors: Mapping[str, Tensor], path: Path) -> Recipe:
    """With the latents' scale that was measured in training, where the config leaves it to the file."""
    if not recipe.scale_is_stored:
        return recipe
    stored = tensors.get("scale_factor")
    if stored is None or stored.numel() != 1:
        raise UserError(f"{path}: scale_factor is missing, and the config says scale_by_std: the latents' scale is not known")
    check_numbers(stored, f"{path}: scale_factor")
    return recipe.with_scale(stored.item())


def _averaged(ema: Mapping[str, Tensor], keys: KeyMap, path: Path) -> dict[str, Tensor]:
    """The EMA's tensors by the names of what they are the averages of: there they have no dots."""
    dotted = {f"diffusion_model{name}".replace(".", ""): name for entry in keys.entries for name in entry.theirs}
    for name, tensor in ema.items():
        if name not in dotted and name not in OF_THE_EMA:
            raise UserError(f"{path}: {EMA}{name}, of shape {tuple(tensor.shape)}, has no place in the network that the config describes")
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
            return mine, read_tower(theirs, where), recipe
        with_nothing = not isinstance(config, ClassLabelConfig) or has_nothing(config, theirs)
        part = stored_part(name, config, recipe.unet.config.context_width or 0, with_nothing=with_nothing)
        if part is None:
            continue
        mine |= part.take(theirs, where)
        notes += [f"passed over {CONDITIONER}{start}*: {why}" for start, why in part.passed_over(theirs).items()]
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
