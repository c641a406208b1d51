"""diffusers' configs of autoencoders and LDM's BERT: without them wrong sizes or settings would be found only in wrong images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ldm.conditioning.bert_scratch import WORDS, BertScratchConfig
from ldm.conditioning.transformer import TransformerConfig
from ldm.config.loader import dump
from ldm.core.errors import UserError
from ldm.core.settings import Size
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.interop.foreign_config import must_be, must_be_few, read_foreign
from ldm.networks.blocks.norm import groups_for

PLAIN, ATTENDING = "", "Attn"


@dataclass(frozen=True, kw_only=True)
class _Common:
    """Fields of both autoencoders. Names and defaults are diffusers'; a Literal is fixed in our network; `force_upcast` is unread."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    layers_per_block: int = 1
    act_fn: Literal["silu"] = "silu"
    latent_channels: int
    norm_num_groups: int = 32
    sample_size: Size = 32
    scaling_factor: float = 0.18215
    force_upcast: bool = True
    mid_block_add_attention: bool = True


@dataclass(frozen=True, kw_only=True)
class AutoencoderKL(_Common):
    """Fields of the KL autoencoder."""

    shift_factor: float | None = None
    use_quant_conv: Literal[True] = True
    use_post_quant_conv: Literal[True] = True


@dataclass(frozen=True, kw_only=True)
class VQModel(_Common):
    """Fields of the VQ autoencoder."""

    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None
    norm_type: Literal["group"] = "group"
    lookup_from_codebook: Literal[False] = False


@dataclass(frozen=True, kw_only=True)
class LDMBertModel:
    """Fields of the text encoder."""

    vocab_size: int = WORDS
    max_position_embeddings: int = 77
    encoder_layers: int = 32
    encoder_ffn_dim: int = 5120
    encoder_attention_heads: int = 8
    head_dim: int = 64
    activation_function: Literal["gelu"] = "gelu"
    d_model: int = 1280
    dropout: float = 0.1
    scale_embedding: Literal[False] = False
    pad_token_id: Literal[0] = 0


BERT_UNREAD = (
    "architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "encoder_layerdrop", "attention_dropout",
    "activation_dropout", "init_std", "classifier_dropout", "use_cache", "num_hidden_layers", "is_encoder_decoder",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SizedAutoencoder:
    """An autoencoder, the scale and shift of its latents, and the size of its training images, in pixels."""

    config: ConvolutionalConfig
    scale: float
    shift: float
    size: Size


def autoencoder_json(autoencoder: SizedAutoencoder) -> dict[str, Any]:
    """diffusers' config of our autoencoder.

    Raises:
        UserError: it has no counterpart there; gives the reason.
    """
    config = autoencoder.config
    widths = tuple(config.channels * multiplier for multiplier in config.multipliers)
    if config.decoder_channels not in (None, config.channels):
        raise UserError("diffusers' autoencoders have a decoder as wide as the encoder: decoder_channels has no counterpart there")
    if config.multipliers[0] != 1:
        raise UserError(f"diffusers' autoencoders start with multiplier 1, this one with {config.multipliers[0]}")
    groups = {groups_for(width) for width in widths}
    if len(groups) > 1:
        raise UserError(
            f"diffusers' autoencoders have one number of groups in all norms; levels of {', '.join(map(str, widths))} channels have "
            f"{', '.join(map(str, sorted(groups)))} here (32 from 64 channels on)"
        )
    down, up = _block_types(config)
    common: dict[str, Any] = {
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": widths,
        "layers_per_block": config.blocks,
        "latent_channels": config.latent_channels,
        "norm_num_groups": groups.pop(),
        "sample_size": autoencoder.size,
        "scaling_factor": autoencoder.scale,
        "mid_block_add_attention": config.middle_attention,
    }
    made: _Common
    if isinstance(config, VQAutoencoderConfig):
        made = VQModel(**common, num_vq_embeddings=config.num_codes, vq_embed_dim=config.code_channels)
    else:
        made = AutoencoderKL(**common, shift_factor=autoencoder.shift or None)
    return {"_class_name": type(made).__name__, **dump(made)}


def sized_autoencoder(content: Any, where: str) -> SizedAutoencoder:
    """Our autoencoder of a diffusers config.

    Raises:
        UserError: its network does not exist here.
    """
    name = content.get("_class_name") if isinstance(content, dict) else None
    schema: type[_Common]
    if name == "AutoencoderKL":
        schema = AutoencoderKL
    elif name == "VQModel":
        schema = VQModel
    else:
        raise UserError(f"{where}: _class_name is {name!r}; AutoencoderKL and VQModel can be imported")
    theirs = read_foreign(content, schema, where)
    widths = theirs.block_out_channels
    must_be_few(where, "layers_per_block", theirs.layers_per_block)
    if theirs.in_channels != theirs.out_channels:
        raise UserError(f"{where}: in_channels is {theirs.in_channels} and out_channels {theirs.out_channels}; they must be the same")
    if not widths or any(width < 1 or width % widths[0] for width in widths):
        raise UserError(f"{where}: block_out_channels {widths} are not multiples of the first")
    for width in widths:
        must_be(where, "norm_num_groups", theirs.norm_num_groups, groups_for(width))
    attends = {_block_type(kind, "DownEncoder"): bool(kind) for kind in (PLAIN, ATTENDING)}
    if any(kind not in attends for kind in theirs.down_block_types) or len(theirs.down_block_types) != len(widths):
        raise UserError(
            f"{where}: down_block_types {', '.join(theirs.down_block_types)}; one a level of {', '.join(attends)} can be imported"
        )
    common: dict[str, Any] = {
        "image_channels": theirs.in_channels,
        "channels": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "blocks": theirs.layers_per_block,
        "attention": tuple(2**level for level, kind in enumerate(theirs.down_block_types) if attends[kind]),
        "middle_attention": theirs.mid_block_add_attention,
    }
    config: ConvolutionalConfig
    if isinstance(theirs, VQModel):
        must_be(where, "vq_embed_dim", theirs.vq_embed_dim or theirs.latent_channels, theirs.latent_channels)
        config = VQAutoencoderConfig(**common, num_codes=theirs.num_vq_embeddings, code_channels=theirs.latent_channels)
    else:
        config = KLAutoencoderConfig(**common, latent_channels=theirs.latent_channels)
    if _block_types(config)[1] != theirs.up_block_types:
        raise UserError(f"{where}: up_block_types {', '.join(theirs.up_block_types)} are not down_block_types from the other end")
    shift = theirs.shift_factor if isinstance(theirs, AutoencoderKL) else None
    return SizedAutoencoder(config=config, scale=theirs.scaling_factor, shift=shift or 0.0, size=theirs.sample_size)


def _block_types(config: ConvolutionalConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kinds = [ATTENDING if 2**level in config.attention else PLAIN for level in range(len(config.multipliers))]
    down, up = (tuple(_block_type(kind, way) for kind in order) for order, way in ((kinds, "DownEncoder"), (kinds[::-1], "UpDecoder")))
    return down, up


def _block_type(kind: str, way: str) -> str:
    return f"{kind}{way}Block2D"


def transformer_json(config: TransformerConfig, vocabulary: int, length: int) -> dict[str, Any]:
    """diffusers' config of a conditioner's transformer; arguments as TokenTransformer's."""
    made = LDMBertModel(
        vocab_size=vocabulary,
        max_position_embeddings=length,
        encoder_layers=config.depth,
        encoder_ffn_dim=4 * config.width,
        encoder_attention_heads=config.heads,
        head_dim=config.head_width,
        d_model=config.width,
        dropout=config.dropout,
    )
    return {"architectures": ["LDMBertModel"], "model_type": "ldmbert", **dump(made)}


def bert_config(content: Any, where: str) -> BertScratchConfig:
    """Our text encoder of a diffusers config; it attends to padding, as in its training.

    Raises:
        UserError: its network does not exist here.
    """
    theirs = read_foreign(content, LDMBertModel, where, BERT_UNREAD)
    must_be_few(where, "encoder_layers", theirs.encoder_layers)
    must_be(where, "vocab_size", theirs.vocab_size, WORDS)
    must_be(where, "encoder_ffn_dim", theirs.encoder_ffn_dim, 4 * theirs.d_model)
    return BertScratchConfig(
        width=theirs.d_model,
        depth=theirs.encoder_layers,
        heads=theirs.encoder_attention_heads,
        head_width=theirs.head_dim,
        max_tokens=theirs.max_position_embeddings,
        is_masked=False,
        dropout=theirs.dropout,
    )
