"""Our checkpoint as a single file of CompVis's and Stable Diffusion's, with the YAML that describes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.interop.autoencoder_keys import autoencoder_keys
from ldm.checkpoints.interop.clip_text import TextTower, give_tower
from ldm.checkpoints.interop.compvis import CONDITIONER, DENOISER, FIRST_STAGE
from ldm.checkpoints.interop.compvis_config import LAST_IS_NOTHING, LATENT_DIFFUSIONS, SPACINGS, UNETS
from ldm.checkpoints.interop.compvis_parts import GROUPS
from ldm.checkpoints.interop.conditioner_keys import stored_part
from ldm.checkpoints.interop.latent_scale import scaled_for_peer
from ldm.checkpoints.interop.ours import Ours
from ldm.checkpoints.interop.transformer_keys import WORD_OUTPUT
from ldm.checkpoints.interop.unet_keys import unet_keys
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
from ldm.core.files import sync, write_file
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.networks.blocks.norm import groups_for
from ldm.networks.unet import UNetConfig

HEADS, HEAD_WIDTH = 8, 64  # of the transformer there
MODULES = "ldm.modules.encoders.modules"
UNCONDITIONAL = "__is_unconditional__"


def export_compvis(ours: Ours, out: Path) -> tuple[str, ...]:
    """Writes the file, `.safetensors` or `.ckpt`, and beside it the YAML of the same name.

    Returns:
        What the user should know.

    Raises:
        UserError: what CompVis's code cannot represent; another suffix.
    """
    if out.suffix not in (".safetensors", ".ckpt"):
        raise UserError(f"--out {out}: a single file ends in .safetensors or .ckpt")
    tensors, config, notes = compvis_of(ours)
    with _whole(out) as temporary:
        if out.suffix == ".ckpt":
            # Clones: of a mapped tensor torch.save would write the whole file that it is mapped from.
            clones = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
            torch.save({"state_dict": clones}, temporary)
        else:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"format": "pt"})
    write_file(out.with_suffix(".yaml"), yaml.safe_dump(config, sort_keys=False))
    return (*notes, f"CompVis's code needs {out.with_suffix('.yaml').name}; tools that know Stable Diffusion by its tensors do not")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def compvis_of(ours: Ours) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """All tensors by CompVis's names, the YAML's content, and what the user should know.

    Raises:
        UserError: what CompVis's code cannot represent.
    """
    spec = ours.spec
    weights, scale, notes = scaled_for_peer(ours.autoencoder, spec.space, ours.first_stage)
    first_stage = _first_stage_config(ours)
    tower = _tower(ours)
    told = _conditioner_config(ours, tower)
    is_linear = tower is not None and tower.is_open  # as Stable Diffusion 2's, by which some tools know it
    unet = ours.unet(is_linear=is_linear)
    keys = unet_keys(unet.config, unet.in_channels, unet.out_channels, "compvis", is_linear=is_linear)
    tensors = {DENOISER + name: tensor for name, tensor in keys.give(ours.denoiser).items()}
    autoencoder = autoencoder_keys(ours.autoencoder, "compvis").give(weights)
    tensors |= {FIRST_STAGE + name: tensor for name, tensor in autoencoder.items()}
    tensors |= {CONDITIONER + name: tensor for name, tensor in _conditioner(ours, tower).items()}
    process = _process(ours)
    tensors |= _tables(process)
    params: dict[str, Any] = {
        "linear_start": process.beta_first,
        "linear_end": process.beta_last,
        "beta_schedule": {mine: theirs for theirs, mine in SPACINGS.items()}[process.spacing],
        "timesteps": process.num_steps,
        "parameterization": _prediction(ours),
        "image_size": unet.sample_size,
        "channels": spec.first_stage.latent_channels,
        "scale_factor": scale,
        "use_ema": False,
        **told,
        "unet_config": {"target": UNETS[0], "params": _unet_params(ours, is_linear)},
        "first_stage_config": first_stage,
    }
    target = LATENT_DIFFUSIONS[1 if ours.told_by(InpaintMaskConfig) else 0]
    config: dict[str, Any] = {"model": {"base_learning_rate": 1e-6, "target": target, "params": params}}
    if ours.told_by(ClassLabelConfig):
        config[LAST_IS_NOTHING] = True
    return tensors, config, notes


def _unet(ours: Ours) -> UNetConfig:
    config = ours.unet().config
    if config.groups != GROUPS:
        raise UserError(f"CompVis's norms have {GROUPS} groups, those of a UNet of {config.channels} channels {config.groups} here")
    if config.vector_width is not None:
        raise UserError("CompVis's UNet takes no vector beside the time (vector_width): a condition must be attended to or concatenated")
    if config.transformer_depth and config.context_width is None:
        raise UserError("CompVis has no UNet of transformers without tokens (transformer_depth above 0, context_width null)")
    return config


def _unet_params(ours: Ours, is_linear: bool) -> dict[str, Any]:
    unet, config = ours.unet(), _unet(ours)
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


def _process(ours: Ours) -> DiscreteVP:
    process = ours.spec.process
    if not isinstance(process, DiscreteVP) or process.zero_terminal_snr:
        raise UserError(f"CompVis's code has discrete_vp without zero_terminal_snr only; this model has process {process.kind!r}")
    return process


def _prediction(ours: Ours) -> str:
    kind = ours.spec.prediction.kind
    if kind not in ("eps", "x0", "v"):
        raise UserError(f"CompVis's code has no prediction {kind!r}; it has eps, x0 and v")
    return kind


def _tables(process: DiscreteVP) -> dict[str, Tensor]:
    """The noise schedule, by which some tools know a checkpoint of this kind."""
    t = torch.arange(1, process.num_steps + 1, dtype=torch.float64) / process.num_steps
    kept = process.alpha(t).square()
    betas = 1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    return {"betas": betas.float(), "alphas_cumprod": kept.float()}


def _conditioner_config(ours: Ours, tower: TextTower | None) -> dict[str, Any]:
    """`cond_stage_config` and by what way it is told."""
    told = {name: config for name, config in ours.spec.conditioning.items() if not isinstance(config, InpaintMaskConfig)}
    has_mask = len(told) < len(ours.spec.conditioning)
    if len(told) > 1:
        raise UserError(f"CompVis's models are told by one conditioner (and a mask), this one by {', '.join(told)}")
    if not told:
        if has_mask:
            raise UserError("CompVis's code has no model that is told a mask of 0 and 1 and nothing else")
        return {"cond_stage_key": "image", "concat_mode": False, "cond_stage_config": UNCONDITIONAL}
    name, config = next(iter(told.items()))
    target, params, key, way = _target(name, config, ours, tower)
    if has_mask and way != "crossattn":
        raise UserError(f"CompVis's code has no model that is told a mask beside {name}")
    return {
        "cond_stage_key": key,
        "conditioning_key": "hybrid" if has_mask else way,
        "cond_stage_trainable": True,
        "cond_stage_config": {"target": target, "params": params},
    }


def _target(name: str, config: ConditionerConfig, ours: Ours, tower: TextTower | None) -> tuple[str, dict[str, Any], str, str]:
    """Its target, parameters, key of the data, and way."""
    context = _unet(ours).context_width
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
            stages = ours.spec.first_stage.ratio.bit_length() - 1
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


def _tower(ours: Ours) -> TextTower | None:
    """The frozen text tower, where there is one; in version 2 its reader takes what comes before the last layer."""
    for config in ours.told_by(ClipPretrainedConfig).values():
        assert isinstance(config, ClipPretrainedConfig)
        tower = ours.text_tower(config)
        return tower.with_idle_layer() if tower.is_open and config.layer == "last" else tower
    return None


def _conditioner(ours: Ours, tower: TextTower | None) -> dict[str, Tensor]:
    """Its weights, the frozen text tower's included."""
    if tower is not None:
        return give_tower(tower)
    for name, config in ours.spec.conditioning.items():
        stored = stored_part(name, config, ours.unet().config.context_width or 0)
        if stored is not None:
            given = stored.give(ours.conditioner)
            if isinstance(config, TransformerConfig):
                given |= _word_output(stored.theirs, given)
            return given
    return {}


def _word_output(start: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layer that CompVis's transformer has for predicting words, as zeros: its code wants it, and no picture depends on it."""
    words = given[f"{start}token_emb.weight"]
    return {f"{start}{WORD_OUTPUT}weight": torch.zeros_like(words), f"{start}{WORD_OUTPUT}bias": words.new_zeros(len(words))}
