"""Our checkpoint as CompVis's YAML describes it, or the reason why it cannot."""

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
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.interop.clip_text import TextTower
from ldm.interop.compvis.config import BY_FIRST_STAGE, LAST_IS_NOTHING, LATENT_DIFFUSIONS, MASKED, SPACINGS, UNETS, UNTOLD
from ldm.interop.compvis.parts import GROUPS
from ldm.interop.ours import Ours
from ldm.networks.blocks.norm import groups_for
from ldm.networks.unet import UNetConfig

HEADS, HEAD_WIDTH = 8, 64  # of the transformer there
MODULES = "ldm.modules.encoders.modules"


def yaml_of(ours: Ours, tower: TextTower | None, scale: float) -> dict[str, Any]:
    """The YAML's content.

    Args:
        ours: the checkpoint.
        tower: its text tower, where it has one.
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
        "image_size": unet.sample_size,
        "channels": ours.spec.first_stage.latent_channels,
        "scale_factor": scale,
        "use_ema": False,
        **_conditioner_config(ours, tower),
        "unet_config": {"target": UNETS[0], "params": _unet_params(ours, is_linear=is_linear_for(tower))},
        "first_stage_config": _first_stage_config(ours),
    }
    target = LATENT_DIFFUSIONS[1 if ours.told_by(InpaintMaskConfig) and not is_told_by_first_stage(ours) else 0]
    config: dict[str, Any] = {"model": {"base_learning_rate": 1e-6, "target": target, "params": params}}
    if ours.told_by(ClassLabelConfig):
        config[LAST_IS_NOTHING] = True
    return config


def is_linear_for(tower: TextTower | None) -> bool:
    """Whether the UNet's transformers have linear projections: as Stable Diffusion 2's, by which some tools know it."""
    return tower is not None and tower.is_open


def is_told_by_first_stage(ours: Ours) -> bool:
    """Whether it is told as inpainting-big: a picture with a black hole, and nothing else."""
    told = tuple(ours.spec.conditioning.values())
    return len(told) == 1 and isinstance(told[0], InpaintMaskConfig) and told[0].convention == "inpainting_big"


def unet_of(ours: Ours) -> UNetConfig:
    config = ours.unet().config
    if config.groups != GROUPS:
        raise UserError(f"CompVis's norms have {GROUPS} groups, those of a UNet of {config.channels} channels {config.groups} here")
    if config.vector_width is not None:
        raise UserError("CompVis's UNet takes no vector beside the time (vector_width): a condition must be attended to or concatenated")
    if config.transformer_depth and config.context_width is None:
        raise UserError("CompVis has no UNet of transformers without tokens (transformer_depth above 0, context_width null)")
    return config


def _unet_params(ours: Ours, *, is_linear: bool) -> dict[str, Any]:
    unet, config = ours.unet(), unet_of(ours)
    params: dict[str, Any] = {
        "image_size": unet.sample_size,
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
        "resolution": ours.spec.size,
        "in_channels": config.image_channels,
        "out_ch": config.image_channels,
        "ch": config.channels,
        "ch_mult": list(config.multipliers),
        "num_res_blocks": config.blocks,
        "attn_resolutions": [ours.spec.size // ratio for ratio in config.attention],
        "dropout": config.dropout,
        "attn_type": "vanilla" if config.middle_attention else "none",
    }
    if config.attention and not config.middle_attention:
        raise UserError("CompVis's autoencoders attend in the middle if they attend anywhere (middle_attention: false)")
    codes = {"n_embed": config.num_codes} if isinstance(config, VQAutoencoderConfig) else {}
    params = {"embed_dim": config.latent_channels, **codes, "ddconfig": coders, "lossconfig": {"target": "torch.nn.Identity"}}
    return {"target": f"ldm.models.autoencoder.{'VQModelInterface' if is_vq else 'AutoencoderKL'}", "params": params}


def process_of(ours: Ours) -> DiscreteVP:
    process = ours.spec.process
    if not isinstance(process, DiscreteVP) or process.zero_terminal_snr:
        raise UserError(f"CompVis's code has discrete_vp without zero_terminal_snr only; this model has process {process.kind!r}")
    return process


def _prediction(ours: Ours) -> str:
    kind = ours.spec.prediction.kind
    if kind not in ("eps", "x0", "v"):
        raise UserError(f"CompVis's code has no prediction {kind!r}; it has eps, x0 and v")
    return kind


def _conditioner_config(ours: Ours, tower: TextTower | None) -> dict[str, Any]:
    """`cond_stage_config` and by what way it is told."""
    if is_told_by_first_stage(ours):
        if not isinstance(ours.autoencoder, VQAutoencoderConfig):
            raise UserError("CompVis's code can tell a model by its first stage only where that is a VQ autoencoder")
        return {"cond_stage_key": MASKED, "concat_mode": True, "cond_stage_config": BY_FIRST_STAGE}
    masks = ours.told_by(InpaintMaskConfig)
    told = {name: config for name, config in ours.spec.conditioning.items() if name not in masks}
    if len(told) > 1:
        raise UserError(f"CompVis's models are told by one conditioner (and a mask), this one by {', '.join(told)}")
    if not told:
        if masks:
            raise UserError("CompVis's code has no model that is told a mask as Stable Diffusion is, and nothing else")
        return {"cond_stage_key": "image", "concat_mode": False, "cond_stage_config": UNTOLD}
    name, config = next(iter(told.items()))
    target, params, key, way = _target(name, config, ours, tower)
    if len(masks) > 1 or any(mask.convention != "stable_diffusion" for mask in masks.values()) or (masks and way != "crossattn"):
        raise UserError(f"CompVis's code has no model that is told a mask beside {name} as here")
    return {
        "cond_stage_key": key,
        "conditioning_key": "hybrid" if masks else way,
        "cond_stage_trainable": True,
        "cond_stage_config": {"target": target, "params": params},
    }


def _target(name: str, config: ConditionerConfig, ours: Ours, tower: TextTower | None) -> tuple[str, dict[str, Any], str, str]:
    """Its target, parameters, key of the data, and way."""
    context = unet_of(ours).context_width
    if isinstance(config, TransformerConfig):
        if (config.heads, config.head_width) != (HEADS, HEAD_WIDTH):
            raise UserError(f"CompVis's text transformer has {HEADS} heads of {HEAD_WIDTH}, this one {config.heads} of {config.head_width}")
        if config.width != context:
            raise UserError(f"CompVis's UNet attends to the transformer's own width; here {config.width} are projected to {context}")
    match config:
        case BertScratchConfig(is_masked=True):
            raise UserError("CompVis's text transformer attends to padding too; this one was trained without (is_masked: true)")
        case BertScratchConfig():
            sizes = {"n_embed": config.width, "n_layer": config.depth, "vocab_size": WORDS, "max_seq_len": config.max_tokens}
            return f"{MODULES}.BERTEmbedder", sizes, "caption", "crossattn"
        case BoxesConfig():
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
    raise UserError(f"CompVis's code has no counterpart of conditioner {name} ({config.kind}) as it is set here")
