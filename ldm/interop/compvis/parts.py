"""CompVis's first stages and conditioners by their `target:` names: without these tables its YAML would name classes unknown here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ldm.conditioning.bert_scratch import WORDS, BertScratchConfig
from ldm.conditioning.boxes import BoxesConfig
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.clip_pretrained import CLIP_L, OPEN_CLIP_H, ClipPretrainedConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.conditioning.semantic_map import SemanticMapConfig
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.interop.diffusers.unet import SizedUNet
from ldm.interop.foreign_config import must_be, must_be_few, read_foreign
from ldm.networks.blocks.norm import groups_for

GROUPS = 32  # of every norm there
OF_TRAINING = (
    "lossconfig", "monitor", "ckpt_path", "ignore_keys", "image_key", "colorize_nlabels", "batch_resize_range", "scheduler_config",
    "lr_g_factor", "use_ema", "ema_decay", "learn_logvar", "sane_index_shape",
)  # fmt: skip
OF_THE_MACHINE = ("device", "freeze", "key")


@dataclass(frozen=True, kw_only=True)
class Coders:
    """`ddconfig`: of encoder and decoder."""

    double_z: bool = True
    z_channels: int
    resolution: int
    in_channels: int
    out_ch: int
    ch: int
    ch_mult: tuple[int, ...] = (1, 2, 4, 8)
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    dropout: float = 0.0
    attn_type: Literal["vanilla", "vanilla-xformers", "none"] = "vanilla"
    resamp_with_conv: Literal[True] = True


@dataclass(frozen=True, kw_only=True)
class AutoencoderKL:
    """Parameters of CompVis's KL autoencoder."""

    embed_dim: int
    ddconfig: Coders


@dataclass(frozen=True, kw_only=True)
class VQModel:
    """Parameters of CompVis's VQ autoencoder; those of VQModelInterface are the same."""

    embed_dim: int
    n_embed: int
    ddconfig: Coders


@dataclass(frozen=True, kw_only=True)
class BERTEmbedder:
    """Parameters of CompVis's text transformer. Without the tokenizer it reads the tokens of a layout."""

    n_embed: int
    n_layer: int
    vocab_size: int = WORDS
    max_seq_len: int = 77
    use_tokenizer: bool = True
    embedding_dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClassEmbedder:
    """Parameters of CompVis's table of classes."""

    embed_dim: int
    n_classes: int = 1000


@dataclass(frozen=True, kw_only=True)
class SpatialRescaler:
    """Parameters of CompVis's downsampling of semantic maps."""

    n_stages: int = 1
    method: Literal["bilinear"] = "bilinear"
    multiplier: float = 0.5
    in_channels: int = 3
    out_channels: int
    bias: Literal[False] = False


@dataclass(frozen=True, kw_only=True)
class FrozenCLIPEmbedder:
    """Parameters of Stable Diffusion 1's text encoder; `version` is a hub name."""

    version: str = CLIP_L
    max_length: int = 77
    layer: Literal["last"] = "last"


@dataclass(frozen=True, kw_only=True)
class FrozenOpenCLIPEmbedder:
    """Parameters of Stable Diffusion 2's text encoder; `version` is open_clip's name for the weights that the hub has as OPEN_CLIP_H."""

    arch: Literal["ViT-H-14"] = "ViT-H-14"
    version: Literal["laion2b_s32b_b79k"] = "laion2b_s32b_b79k"
    max_length: int = 77
    layer: Literal["last", "penultimate"] = "last"


@dataclass(frozen=True, kw_only=True)
class NoParameters:
    """Parameters of torch.nn.Identity: none."""


Conditioning = dict[str, ConditionerConfig]


@dataclass(frozen=True)
class ConditionerKind:
    """A `target:` that conditions the denoiser.

    Attributes:
        way: how the condition reaches the denoiser.
        read: (parameters, their place in the file, first stage, UNet) -> our configs, by the names that imported models get.
    """

    way: Literal["crossattn", "concat"]
    read: Callable[[dict[str, Any], str, FirstStageConfig, SizedUNet], Conditioning]


def _kl(params: dict[str, Any], where: str) -> tuple[FirstStageConfig, int]:
    theirs = read_foreign(params, AutoencoderKL, where, OF_TRAINING)
    must_be(f"{where}.ddconfig", "double_z", theirs.ddconfig.double_z, True)
    return KLAutoencoderConfig(**_coders(theirs.ddconfig, theirs.embed_dim, where), latent_channels=theirs.embed_dim), _size(theirs)


def _vq(params: dict[str, Any], where: str) -> tuple[FirstStageConfig, int]:
    theirs = read_foreign(params, VQModel, where, OF_TRAINING)
    must_be(f"{where}.ddconfig", "double_z", theirs.ddconfig.double_z, False)
    shape = _coders(theirs.ddconfig, theirs.embed_dim, where)
    return VQAutoencoderConfig(**shape, num_codes=theirs.n_embed, code_channels=theirs.embed_dim), _size(theirs)


def _coders(theirs: Coders, embed_dim: int, where: str) -> dict[str, Any]:
    """The shape of encoder and decoder, as arguments of ConvolutionalConfig."""
    at = f"{where}.ddconfig"
    must_be_few(at, "num_res_blocks", theirs.num_res_blocks)
    must_be_few(at, "ch_mult", theirs.ch_mult)
    must_be(at, "z_channels", theirs.z_channels, embed_dim)
    must_be(at, "out_ch", theirs.out_ch, theirs.in_channels)
    for width in {theirs.ch * multiplier for multiplier in theirs.ch_mult}:
        must_be(at, f"number of norm groups of {width} channels", GROUPS, groups_for(width))
    factors = {theirs.resolution // 2**level: 2**level for level in range(len(theirs.ch_mult))}  # by the side of a level's features
    return {
        "image_channels": theirs.in_channels,
        "channels": theirs.ch,
        "multipliers": theirs.ch_mult,
        "blocks": theirs.num_res_blocks,
        "attention": tuple(factors[side] for side in theirs.attn_resolutions if side in factors),
        "middle_attention": theirs.attn_type != "none",
        "dropout": theirs.dropout,
    }


def _size(theirs: AutoencoderKL | VQModel) -> int:
    return theirs.ddconfig.resolution


def _bert(params: dict[str, Any], where: str, first_stage: FirstStageConfig, unet: SizedUNet) -> Conditioning:
    theirs = read_foreign(params, BERTEmbedder, where, OF_THE_MACHINE)
    must_be_few(where, "n_layer", theirs.n_layer)
    must_be(where, "n_embed", theirs.n_embed, unet.config.context_width or 0)
    shape: dict[str, Any] = {"width": theirs.n_embed, "depth": theirs.n_layer, "dropout": theirs.embedding_dropout}
    if theirs.use_tokenizer:
        must_be(where, "vocab_size", theirs.vocab_size, WORDS)
        return {"text": BertScratchConfig(**shape, max_tokens=theirs.max_seq_len, is_masked=False)}
    boxes = (theirs.max_seq_len - 2) // 3
    must_be(where, "max_seq_len", theirs.max_seq_len, 3 * boxes + 2)
    most_classes = theirs.vocab_size - 1  # the file does not record their number
    return {"boxes": BoxesConfig(**shape, num_classes=most_classes, max_boxes=boxes, vocabulary=theirs.vocab_size)}


def _class(params: dict[str, Any], where: str, first_stage: FirstStageConfig, unet: SizedUNet) -> Conditioning:
    theirs = read_foreign(params, ClassEmbedder, where, OF_THE_MACHINE)
    must_be(where, "embed_dim", theirs.embed_dim, unet.config.context_width or 0)
    return {"class": ClassLabelConfig(num_classes=theirs.n_classes, how="attend")}


def _map(params: dict[str, Any], where: str, first_stage: FirstStageConfig, unet: SizedUNet) -> Conditioning:
    theirs = read_foreign(params, SpatialRescaler, where)
    must_be_few(where, "n_stages", theirs.n_stages)
    must_be(where, "multiplier", theirs.multiplier, 0.5)
    must_be(where, "2^n_stages", 2**theirs.n_stages, first_stage.downsampling_factor)
    return {"map": SemanticMapConfig(num_classes=theirs.in_channels, channels=theirs.out_channels, shares=True)}


def _small(params: dict[str, Any], where: str, first_stage: FirstStageConfig, unet: SizedUNet) -> Conditioning:
    read_foreign(params, NoParameters, where)
    return {"small": LowResolutionConfig(channels=first_stage.image_channels)}


def _clip(params: dict[str, Any], where: str, first_stage: FirstStageConfig, unet: SizedUNet) -> Conditioning:
    theirs = read_foreign(params, FrozenCLIPEmbedder, where, OF_THE_MACHINE)
    return {"text": ClipPretrainedConfig(model=theirs.version, max_tokens=theirs.max_length)}


def _open_clip(params: dict[str, Any], where: str, first_stage: FirstStageConfig, unet: SizedUNet) -> Conditioning:
    theirs = read_foreign(params, FrozenOpenCLIPEmbedder, where, OF_THE_MACHINE)
    return {"text": ClipPretrainedConfig(model=OPEN_CLIP_H, layer=theirs.layer, max_tokens=theirs.max_length)}


FIRST_STAGES: dict[str, Callable[[dict[str, Any], str], tuple[FirstStageConfig, int]]] = {
    "ldm.models.autoencoder.AutoencoderKL": _kl,
    "ldm.models.autoencoder.VQModel": _vq,
    "ldm.models.autoencoder.VQModelInterface": _vq,
}
"""(Parameters, their place in the file) -> the first stage and the side of its images, in pixels."""

CONDITIONERS: dict[str, ConditionerKind] = {
    "ldm.modules.encoders.modules.BERTEmbedder": ConditionerKind("crossattn", _bert),
    "ldm.modules.encoders.modules.ClassEmbedder": ConditionerKind("crossattn", _class),
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": ConditionerKind("crossattn", _clip),
    "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder": ConditionerKind("crossattn", _open_clip),
    "ldm.modules.encoders.modules.SpatialRescaler": ConditionerKind("concat", _map),
    "torch.nn.Identity": ConditionerKind("concat", _small),
}
