"""Reads CompVis's and Stability's YAML by explicit tables: without it a `target:` would have to be imported, so a file could run any code.

Keys and defaults are those of the classes named; keys that no image depends on are listed as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.core.errors import UserError, unknown
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.processes.discrete_vp import COSINE_OFFSET, DiscreteVP
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.interop.compvis.parts import CONDITIONERS, FIRST_STAGES, GROUPS
from ldm.interop.diffusers.unet import SizedUNet
from ldm.interop.foreign_config import must_be, must_be_few, read_foreign, read_yaml, shown
from ldm.interop.recipe import AutoencoderRecipe, Recipe
from ldm.networks.unet import UNetConfig

LATENT_DIFFUSIONS = (
    "ldm.models.diffusion.ddpm.LatentDiffusion",
    "ldm.models.diffusion.ddpm.LatentInpaintDiffusion",
    "ldm.models.diffusion.ddpm.Layout2ImgDiffusion",
)
UNETS = ("ldm.modules.diffusionmodules.openaimodel.UNetModel",)
SPACINGS: dict[str, Literal["linear", "sqrt_linear", "cosine"]] = {
    "linear": "sqrt_linear",  # there too it is linear in sqrt(beta), despite its name
    "sqrt_linear": "linear",
    "cosine": "cosine",
}
OF_TRAINING = (
    "loss_type", "monitor", "log_every_t", "num_timesteps_cond", "cond_stage_trainable", "cond_stage_forward", "scheduler_config",
    "ckpt_path", "ignore_keys", "load_only_unet", "clip_denoised", "original_elbo_weight", "v_posterior", "l_simple_weight", "use_ema",
    "learn_logvar", "logvar_init", "finetune_keys", "first_stage_key", "masked_image_key", "make_it_fit", "ucg_training", "reset_ema",
    "reset_num_ema_updates",
)  # fmt: skip
UNET_UNREAD = ("image_size", "use_checkpoint", "use_fp16", "use_bf16", "legacy")  # of memory and precision, or without effect
CLASSES_AND_NULL = 1001  # of ImageNet: the last class of cin256-v2 is the null class, which its file does not record
LAST_IS_NULL = "last_class_is_nothing"  # our own key beside `model:`, which CompVis's code does not read
UNCONDITIONAL, BY_FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"  # instead of a cond_stage_config
MASKED = "masked_image"  # key of the condition of the published model with BY_FIRST_STAGE
PARTS = ("unet_config", "first_stage_config", "cond_stage_config")


@dataclass(frozen=True, kw_only=True)
class LatentDiffusion:
    """CompVis's `LatentDiffusion`: its parameters without its parts."""

    timesteps: int = 1000
    beta_schedule: Literal["linear", "sqrt_linear", "cosine"] = "linear"
    linear_start: float = 1e-4
    linear_end: float = 2e-2
    cosine_s: float = COSINE_OFFSET
    parameterization: Literal["eps", "x0", "v"] = "eps"
    image_size: int = 256
    channels: int = 3
    concat_mode: bool = True
    conditioning_key: Literal["concat", "crossattn", "hybrid"] | None = None
    cond_stage_key: str = "image"
    concat_keys: tuple[str, ...] = ("mask", "masked_image")
    scale_factor: float = 1.0
    scale_by_std: bool = False


@dataclass(frozen=True, kw_only=True)
class UNetModel:
    """CompVis's `UNetModel`. Its `legacy` makes no difference with the heads of the published configs."""

    in_channels: int
    out_channels: int
    model_channels: int
    num_res_blocks: int | tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
    dropout: float = 0.0
    conv_resample: Literal[True] = True
    dims: Literal[2] = 2
    num_heads: int = -1
    num_head_channels: int = -1
    num_heads_upsample: Literal[-1] = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    context_dim: int | None = None
    use_linear_in_transformer: bool = False


def read_compvis(path: Path) -> Recipe | AutoencoderRecipe:
    """The model that a YAML file describes.

    Raises:
        UserError: it cannot be read; a target or a value that has no counterpart here.
    """
    content = read_yaml(path)
    where = str(path)
    model = content.get("model")
    if not isinstance(model, dict):
        raise UserError(f"{where}: has no mapping `model:`, so it is not a config of CompVis's code")
    target, params = target_of(model, f"{where}: model")
    if target in FIRST_STAGES:
        first_stage, size = FIRST_STAGES[target](params, f"{where}: model.params")
        return AutoencoderRecipe(size=size, first_stage=first_stage)
    if target not in LATENT_DIFFUSIONS:
        raise unknown(f"target of {where}: model", target, (*LATENT_DIFFUSIONS, *FIRST_STAGES))
    recipe = _latent_diffusion(params, f"{where}: model.params")
    conditioning = {name: _without_null_class(config, content) for name, config in recipe.conditioning.items()}
    return replace(recipe, conditioning=conditioning)


def _without_null_class(config: ConditionerConfig, content: Mapping[str, Any]) -> ConditionerConfig:
    """Class labels without the null class, which the file's `n_classes` may include."""
    match config:
        case ClassLabelConfig(classes=count) if content.get(LAST_IS_NULL) is True or count == CLASSES_AND_NULL:
            return replace(config, num_classes=count - 1)
    return config


def target_of(content: Any, where: str) -> tuple[str, dict[str, Any]]:
    """The `target:` of a part, and its parameters.

    Raises:
        UserError: it has none.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("target"), str):
        raise UserError(f"{where}: must have a `target:`, found {shown(content)}")
    params = content.get("params") or {}
    if not isinstance(params, Mapping):
        raise UserError(f"{where}.params: must be a mapping of keys, found {shown(params)}")
    return content["target"], dict(params)


def _latent_diffusion(params: dict[str, Any], where: str) -> Recipe:
    theirs = read_foreign(params, LatentDiffusion, where, (*OF_TRAINING, *PARTS))
    must_be(where, "cosine_s", theirs.cosine_s, COSINE_OFFSET)
    unet = _unet(params.get("unet_config"), f"{where}.unet_config")
    target, parameters = target_of(params.get("first_stage_config"), f"{where}.first_stage_config")
    if target not in FIRST_STAGES:
        raise unknown(f"target of {where}.first_stage_config:", target, FIRST_STAGES)
    first_stage, _ = FIRST_STAGES[target](parameters, f"{where}.first_stage_config.params")
    must_be(where, "channels", theirs.channels, first_stage.latent_channels)
    must_be(where, "unet_config.params.out_channels", unet.out_channels, first_stage.latent_channels)

    conditioning = _conditioning(params.get("cond_stage_config"), theirs, first_stage, unet, where)
    prediction = Prediction.of_kind(theirs.parameterization)()
    assert isinstance(prediction, Prediction)
    return Recipe(
        autoencoder=AutoencoderRecipe(
            size=theirs.image_size * first_stage.downsampling_factor, first_stage=first_stage, scale=theirs.scale_factor
        ),
        scale_is_stored=theirs.scale_by_std,
        unet=unet,
        conditioning=conditioning,
        process=DiscreteVP(
            spacing=SPACINGS[theirs.beta_schedule],
            num_steps=theirs.timesteps,
            beta_first=theirs.linear_start,
            beta_last=theirs.linear_end,
        ),
        prediction=prediction,
    )


def _unet(content: Any, where: str) -> SizedUNet:
    target, params = target_of(content, where)
    if target not in UNETS:
        raise unknown(f"target of {where}:", target, UNETS)
    theirs = read_foreign(params, UNetModel, f"{where}.params", UNET_UNREAD)
    must_be_few(where, "num_res_blocks", theirs.num_res_blocks)
    must_be_few(where, "transformer_depth", theirs.transformer_depth)
    must_be_few(where, "channel_mult", theirs.channel_mult)
    has_width = theirs.num_head_channels != -1  # it takes precedence where both are given
    config = UNetConfig(
        channels=theirs.model_channels,
        multipliers=theirs.channel_mult,
        blocks=theirs.num_res_blocks,
        attention=theirs.attention_resolutions,
        heads=None if has_width else theirs.num_heads,
        head_width=theirs.num_head_channels if has_width else None,
        scale_shift=theirs.use_scale_shift_norm,
        resample="residual" if theirs.resblock_updown else "conv",
        dropout=theirs.dropout,
        transformer_depth=theirs.transformer_depth if theirs.use_spatial_transformer else 0,
        context_width=theirs.context_dim,
    )
    must_be(where, "model_channels' number of norm groups", GROUPS, config.groups)
    is_linear = theirs.use_linear_in_transformer
    return SizedUNet(config=config, in_channels=theirs.in_channels, out_channels=theirs.out_channels, is_linear=is_linear)


def _conditioning(
    content: Any, theirs: LatentDiffusion, first_stage: FirstStageConfig, unet: SizedUNet, where: str
) -> dict[str, ConditionerConfig]:
    """The model's conditioners: from its `cond_stage_config`, and in hybrid models a mask beside it."""
    if content == UNCONDITIONAL:
        return {}
    if content == BY_FIRST_STAGE:
        return {"mask": _by_first_stage(theirs, first_stage, where)}
    at = f"{where}.cond_stage_config"
    target, params = target_of(content, at)
    if target not in CONDITIONERS:
        raise unknown(f"target of {at}:", target, CONDITIONERS)
    way = theirs.conditioning_key or ("concat" if theirs.concat_mode else "crossattn")
    kind = CONDITIONERS[target]
    conditioning = kind.read(params, f"{at}.params", first_stage, unet)
    if way == "hybrid" and kind.way == "crossattn":
        if theirs.concat_keys != ("mask", "masked_image"):
            raise UserError(f"{where}: concat_keys {', '.join(theirs.concat_keys)}; only mask, masked_image can be imported")
        return conditioning | {"mask": InpaintMaskConfig()}
    if way != kind.way:
        raise UserError(f"{where}: conditioning_key is {way}, but {target} can only be imported where it is {kind.way}")
    return conditioning


def _by_first_stage(theirs: LatentDiffusion, first_stage: FirstStageConfig, where: str) -> InpaintMaskConfig:
    """The conditioner of a model whose condition is the mask and the masked image, encoded by its own first stage and not scaled."""
    if theirs.cond_stage_key != MASKED or not theirs.concat_mode or theirs.conditioning_key not in (None, "concat"):
        raise UserError(f"{where}: with {BY_FIRST_STAGE} only models conditioned on {MASKED} by concatenation can be imported")
    if not isinstance(first_stage, VQAutoencoderConfig):
        raise UserError(f"{where}: with {BY_FIRST_STAGE} only models with a VQ first stage can be imported")
    if theirs.scale_by_std:
        raise UserError(f"{where}: sets scale_by_std, but the condition of {BY_FIRST_STAGE} is not scaled: only scale 1 can be imported")
    must_be(where, "scale_factor", theirs.scale_factor, 1.0)
    return InpaintMaskConfig(convention="inpainting_big")
