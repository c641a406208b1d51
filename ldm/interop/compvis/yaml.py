"""Our checkpoint as CompVis's YAML describes it: without it an exported file would be weights that CompVis's code cannot build a model for.

A model that CompVis's code cannot represent is refused with the reason.
"""

from __future__ import annotations

from typing import Any

from ldm.conditioning.bert_scratch import WORDS, BertScratchConfig
from ldm.conditioning.boxes import BoxesConfig
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.conditioning.semantic_map import SemanticMapConfig
from ldm.conditioning.transformer import TransformerConfig
from ldm.core.errors import UserError
from ldm.core.settings import Size, height_width
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.interop.clip_text import TextTower
from ldm.interop.compvis.config import BY_FIRST_STAGE, LAST_IS_NULL, LATENT_DIFFUSIONS, MASKED, SPACINGS, UNCONDITIONAL, UNETS
from ldm.interop.compvis.parts import GROUPS
from ldm.interop.ours import Ours
from ldm.networks.blocks.norm import groups_for
from ldm.networks.unet import UNetConfig

HEADS, HEAD_WIDTH = 8, 64  # of CompVis's text transformer
MODULES = "ldm.modules.encoders.modules"


def yaml_of(ours: Ours, tower: TextTower | None, scale: float) -> dict[str, Any]:
    """The YAML's content.

    Args:
        ours: the checkpoint.
        tower: its text tower, if it has one.
        scale: of the latents.

    Raises:
        UserError: what CompVis's code cannot represent.
    """
    unet, process = ours.unet(), process_of(ours)
    params: dict[str, Any] = {
        "linear_start": process.beta_first,
        "linear_end": process.beta_last,
        "beta_schedule": {mine: theirs for theirs, mine in SPACINGS.items()}[process.spacing],
        "timesteps": process.num_steps,
        "parameterization": _prediction(ours),
        "image_size": _shorter(unet.sample_size),
        "channels": ours.spec.first_stage.latent_channels,
        "scale_factor": scale,
        "use_ema": False,
        **_conditioner_config(ours, tower),
        "unet_config": {"target": UNETS[0], "params": _unet_params(ours, is_linear=is_linear_for(tower))},
        "first_stage_config": _first_stage_config(ours),
    }
    target = LATENT_DIFFUSIONS[1 if ours.conditioners_of(InpaintMaskConfig) and not is_conditioned_by_first_stage(ours) else 0]
    config: dict[str, Any] = {"model": {"base_learning_rate": 1e-6, "target": target, "params": params}}
    if ours.conditioners_of(ClassLabelConfig):
        config[LAST_IS_NULL] = True
    return config


def is_linear_for(tower: TextTower | None) -> bool:
    """Whether the UNet's transformers have linear projections, as in Stable Diffusion 2, which some tools recognise by them."""
    return tower is not None and tower.is_open


def is_conditioned_by_first_stage(ours: Ours) -> bool:
    """Whether its only condition is that of inpainting-big: an image with a black hole."""
    match tuple(ours.spec.conditioning.values()):
        case [InpaintMaskConfig(convention="inpainting_big")]:
            return True
    return False


def unet_of(ours: Ours) -> UNetConfig:
    config = ours.unet().config
    if config.groups != GROUPS:
        raise UserError(f"CompVis's norms have {GROUPS} groups, those of a UNet of {config.channels} channels {config.groups} here")
    if config.vector_width is not None:
        raise UserError("CompVis's UNet takes no vector beside the time (vector_width): a condition must be attended to or concatenated")
    if config.transformer_depth and config.context_width is None:
        raise UserError("CompVis's code has no UNet with transformers but without tokens (transformer_depth above 0, context_width null)")
    return config


def _unet_params(ours: Ours, *, is_linear: bool) -> dict[str, Any]:
    unet, config = ours.unet(), unet_of(ours)
    params: dict[str, Any] = {
        "image_size": _shorter(unet.sample_size),
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "model_channels": config.channels,
        "attention_resolutions": list(config.attention),
        "num_res_blocks": config.blocks if isinstance(config.blocks, int) else list(config.blocks),
        "channel_mult": list(config.multipliers),
        "dropout": config.dropout,
        "use_scale_shift_norm": config.scale_shift,
        "resblock_updown": config.resample == "residual",
        "legacy": False,
    }
    params |= {"num_heads": config.heads} if config.heads else {"num_head_channels": config.head_width}
    if config.transformer_depth:
        params |= {"use_spatial_transformer": True, "transformer_depth": config.transformer_depth, "context_dim": config.context_width}
    return params | ({"use_linear_in_transformer": True} if is_linear else {})


def _first_stage_config(ours: Ours) -> dict[str, Any]:
    config = ours.autoencoder
    if config.decoder_channels not in (None, config.channels):
        raise UserError("CompVis's autoencoders have a decoder as wide as the encoder: decoder_channels has no counterpart there")
    for width in sorted({config.channels * multiplier for multiplier in config.multipliers}):
        if groups_for(width) != GROUPS:
            raise UserError(f"CompVis's norms have {GROUPS} groups, those of an autoencoder's {width} channels {groups_for(width)} here")
    is_vq = isinstance(config, VQAutoencoderConfig)
    coders = {
        "double_z": not is_vq,
        "z_channels": config.latent_channels,
        "resolution": min(height_width(ours.spec.size)),
        "in_channels": config.image_channels,
        "out_ch": config.image_channels,
        "ch": config.channels,
        "ch_mult": list(config.multipliers),
        "num_res_blocks": config.blocks,
        "attn_resolutions": [min(height_width(ours.spec.size)) // factor for factor in config.attention],
        "dropout": config.dropout,
        "attn_type": "vanilla" if config.middle_attention else "none",
    }
    if config.attention and not config.middle_attention:
        raise UserError("CompVis's autoencoders attend in the middle if they attend anywhere (middle_attention: false)")
    codes = {"n_embed": config.num_codes} if isinstance(config, VQAutoencoderConfig) else {}
    params = {"embed_dim": config.latent_channels, **codes, "ddconfig": coders, "lossconfig": {"target": "torch.nn.Identity"}}
    return {"target": f"ldm.models.autoencoder.{'VQModelInterface' if is_vq else 'AutoencoderKL'}", "params": params}


def _shorter(size: Size | None) -> int | None:
    """The side that CompVis's configs have, which know squares only; its sampling scripts take height and width as flags."""
    return size if size is None else min(height_width(size))


def process_of(ours: Ours) -> DiscreteVP:
    process = ours.spec.process
    if not isinstance(process, DiscreteVP) or process.zero_terminal_snr:
        raise UserError(f"CompVis's code has only discrete_vp, without zero_terminal_snr; this model has process {process.kind!r}")
    return process


def _prediction(ours: Ours) -> str:
    kind = ours.spec.prediction.kind
    if kind not in ("eps", "x0", "v"):
        raise UserError(f"CompVis's code has no prediction {kind!r}; it has eps, x0 and v")
    return kind


def _conditioner_config(ours: Ours, tower: TextTower | None) -> dict[str, Any]:
    """`cond_stage_config` and the keys that say how its condition reaches the denoiser."""
    if is_conditioned_by_first_stage(ours):
        if not isinstance(ours.autoencoder, VQAutoencoderConfig):
            raise UserError("CompVis's code can condition a model by its first stage only if that is a VQ autoencoder")
        return {"cond_stage_key": MASKED, "concat_mode": True, "cond_stage_config": BY_FIRST_STAGE}
    masks = ours.conditioners_of(InpaintMaskConfig)
    others = {name: config for name, config in ours.spec.conditioning.items() if name not in masks}
    if len(others) > 1:
        raise UserError(f"CompVis's models have one conditioner (and a mask), this one has {', '.join(others)}")
    if not others:
        if masks:
            raise UserError("CompVis's code has no model with Stable Diffusion's mask as its only condition")
        return {"cond_stage_key": "image", "concat_mode": False, "cond_stage_config": UNCONDITIONAL}
    name, config = next(iter(others.items()))
    target, params, key, way = _target(name, config, ours, tower)
    if len(masks) > 1 or any(mask.convention != "stable_diffusion" for mask in masks.values()) or (masks and way != "crossattn"):
        raise UserError(f"CompVis's code has no model with {name} and this kind of mask")
    return {
        "cond_stage_key": key,
        "conditioning_key": "hybrid" if masks else way,
        "cond_stage_trainable": True,
        "cond_stage_config": {"target": target, "params": params},
    }


def _target(name: str, config: ConditionerConfig, ours: Ours, tower: TextTower | None) -> tuple[str, dict[str, Any], str, str]:
    """The conditioner's target, its parameters, the key of the data, and how the condition reaches the denoiser."""
    context = unet_of(ours).context_width
    match config:
        case BertScratchConfig():
            _check_transformer(config, context)
            if config.is_masked:
                raise UserError("CompVis's text transformer attends to padding too; this one was trained without (is_masked: true)")
            sizes = {"n_embed": config.width, "n_layer": config.depth, "vocab_size": WORDS, "max_seq_len": config.max_tokens}
            return f"{MODULES}.BERTEmbedder", sizes, "caption", "crossattn"
        case BoxesConfig():
            _check_transformer(config, context)
            sizes = {"n_embed": config.width, "n_layer": config.depth, "vocab_size": config.vocabulary}
            sizes |= {"max_seq_len": 3 * config.max_boxes + 2, "use_tokenizer": False}
            return f"{MODULES}.BERTEmbedder", sizes, "coordinates_bbox", "crossattn"
        case ClassLabelConfig(how="attend"):
            sizes = {"n_classes": config.classes + 1, "embed_dim": context or 0}
            return f"{MODULES}.ClassEmbedder", {**sizes, "key": "class_label"}, "class_label", "crossattn"
        case SemanticMapConfig(shares=True, channels=int()):
            stages = ours.spec.first_stage.downsampling_factor.bit_length() - 1
            sizes = {"n_stages": stages, "in_channels": config.classes, "out_channels": config.channels or 0}
            return f"{MODULES}.SpatialRescaler", sizes, "segmentation", "concat"
        case LowResolutionConfig():
            return "torch.nn.Identity", {}, "LR_image", "concat"
        case ClipPretrainedConfig() if tower is not None and tower.is_open:
            return (
                f"{MODULES}.FrozenOpenCLIPEmbedder",
                {"freeze": True, "layer": "penultimate", "max_length": config.max_tokens},
                "txt",
                "crossattn",
            )
        case ClipPretrainedConfig(layer="last"):
            return f"{MODULES}.FrozenCLIPEmbedder", {"max_length": config.max_tokens}, "txt", "crossattn"
    raise UserError(f"CompVis's code has no counterpart of conditioner {name} ({config.kind}) with these settings")


def _check_transformer(config: TransformerConfig, context: int | None) -> None:
    if (config.heads, config.head_width) != (HEADS, HEAD_WIDTH):
        raise UserError(f"CompVis's text transformer has {HEADS} heads of {HEAD_WIDTH}, this one {config.heads} of {config.head_width}")
    if config.width != context:
        raise UserError(f"CompVis's UNet attends to the transformer's own width; here {config.width} are projected to {context}")
