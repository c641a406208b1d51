"""diffusers' configs of the UNet: without them a UNet with other heads or blocks would load its weights and predict something else.

UNet2DConditionModel has cross-attention to tokens, UNet2DModel has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ldm.config.loader import dump
from ldm.core.errors import UserError
from ldm.core.settings import Size
from ldm.interop.foreign_config import must_be, must_be_few, read_foreign
from ldm.networks.blocks.norm import groups_for
from ldm.networks.unet import UNetConfig

NORM_EPS = 1e-5
TOKEN_PROJECTION = "encoder_hid_proj."
PLAIN, CROSS, RESIDUAL, WITH_ATTENTION = "", "CrossAttn", "Resnet", "Attn"


@dataclass(frozen=True, kw_only=True)
class _Common:
    """Fields of both classes. Names and defaults are diffusers'; a Literal is fixed in our network."""

    sample_size: Size | None = None
    in_channels: int
    out_channels: int
    center_input_sample: Literal[False] = False
    flip_sin_to_cos: Literal[True] = True
    freq_shift: Literal[0] = 0
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    downsample_padding: Literal[1] = 1
    mid_block_scale_factor: float = 1.0
    dropout: float = 0.0
    act_fn: Literal["silu"] = "silu"
    norm_num_groups: int = 32
    norm_eps: float = NORM_EPS
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    time_embedding_type: Literal["positional"] = "positional"


@dataclass(frozen=True, kw_only=True)
class UNet2DConditionModel(_Common):
    """`attention_head_dim` is the number of heads in this class, despite its name; `upcast_attention` changes precision only."""

    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] = "UNetMidBlock2DCrossAttn"
    only_cross_attention: Literal[False] = False
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool = False
    class_embed_type: Literal["projection"] | None = None
    projection_class_embeddings_input_dim: int | None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: Literal["text_proj"] | None = None
    resnet_out_scale_factor: float = 1.0
    conv_in_kernel: Literal[3] = 3
    conv_out_kernel: Literal[3] = 3
    attention_type: Literal["default"] = "default"
    addition_embed_type_num_heads: int = 64


@dataclass(frozen=True, kw_only=True)
class UNet2DModel(_Common):
    """`attention_head_dim` is the width of a head in this class; None = one head of all channels."""

    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    add_attention: Literal[True] = True
    layers_per_block: int = 2
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    attention_head_dim: int | None = 8
    attn_norm_num_groups: int | None = None


@dataclass(frozen=True, kw_only=True)
class SizedUNet:
    """A UNet with its input and output channels.

    Attributes:
        sample_size: of the latents it was trained on, (height, width) or the side of a square; None = not known.
        is_linear: see `unet_keys`.
        token_width: width of the tokens before diffusers' UNet projects them (TOKEN_PROJECTION), which our conditioners do here; None = it
            does not project them.
    """

    config: UNetConfig
    in_channels: int
    out_channels: int
    sample_size: Size | None = None
    is_linear: bool = False
    token_width: int | None = None


def unet_json(unet: SizedUNet, *, sets_heads: bool = False) -> dict[str, Any]:
    """diffusers' config of our network.

    Args:
        unet: ours.
        sets_heads: whether the loading program sets the number of heads, which this config cannot express where `heads_differ`.

    Raises:
        UserError: it has no counterpart there; gives the reason.
    """
    config = unet.config
    if config.multipliers[0] != 1:
        raise UserError(f"diffusers' UNets start with multiplier 1, this one with {config.multipliers[0]}: it has no counterpart there")
    common: dict[str, Any] = {
        "sample_size": unet.sample_size,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": tuple(config.channels * multiplier for multiplier in config.multipliers),
        "dropout": config.dropout,
        "norm_num_groups": config.groups,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
    }
    if config.transformer_depth == 0:
        if heads_differ(config) and not sets_heads:
            raise UserError(f"diffusers' UNet2DModel has heads of one width everywhere; {config.heads} per level have several widths here")
        made: _Common = _plain_unet(config, common)
    else:
        made = _conditional_unet(config, common, unet)
    return {"_class_name": type(made).__name__, **dump(made)}


def heads_differ(config: UNetConfig) -> bool:
    """Whether plain attention has heads of different widths; UNet2DModel has one width only."""
    return config.transformer_depth == 0 and len(_head_widths(config)) > 1


def _head_widths(config: UNetConfig) -> tuple[int, ...]:
    """Widths of all attention heads, in increasing order; the lowest level always has attention."""
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    attended = [width for level, width in enumerate(widths) if 2**level in config.attention or level == len(widths) - 1]
    return tuple(sorted({width // config.heads_for(width) for width in attended}))


def sized_unet(content: Any, where: str) -> SizedUNet:
    """Our network of a diffusers config.

    Raises:
        UserError: its network does not exist here.
    """
    name = content.get("_class_name") if isinstance(content, dict) else None
    if name == "UNet2DConditionModel":
        return _from_conditional(read_foreign(content, UNet2DConditionModel, where), where)
    if name == "UNet2DModel":
        return _from_plain(read_foreign(content, UNet2DModel, where), where)
    raise UserError(f"{where}: _class_name is {name!r}; UNet2DConditionModel and UNet2DModel can be imported")


def _conditional_unet(config: UNetConfig, common: dict[str, Any], unet: SizedUNet) -> UNet2DConditionModel:
    if config.context_width is None:
        raise UserError("diffusers has no UNet with transformers but without tokens (transformer_depth above 0, context_width null)")
    if config.resample == "residual":
        raise UserError("diffusers has no UNet with both cross-attention and residual up- and downsampling (resample: residual)")
    heads = tuple(config.heads_for(channels) for channels in common["block_out_channels"])
    down, up = _block_types(config, CROSS, PLAIN)
    return UNet2DConditionModel(
        **common,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=config.blocks,
        cross_attention_dim=config.context_width,
        transformer_layers_per_block=config.transformer_depth,
        attention_head_dim=heads[0] if len(set(heads)) == 1 else heads,
        use_linear_projection=unet.is_linear,
        encoder_hid_dim=unet.token_width,
        encoder_hid_dim_type=None if unet.token_width is None else "text_proj",
        class_embed_type=None if config.vector_width is None else "projection",
        projection_class_embeddings_input_dim=config.vector_width,
    )


def _plain_unet(config: UNetConfig, common: dict[str, Any]) -> UNet2DModel:
    if config.vector_width is not None:
        raise UserError("diffusers' UNet2DModel takes no vector beside the time: a class for it must be attended to, not embedded")
    if len(set(config.blocks_of_levels)) > 1:
        raise UserError(f"diffusers' UNet2DModel has the same number of blocks on each level, this network {config.blocks_of_levels}")
    is_residual = config.resample == "residual"
    down, up = _block_types(config, WITH_ATTENTION, RESIDUAL if is_residual else PLAIN)
    return UNet2DModel(
        **common,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=config.blocks_of_levels[0],
        downsample_type="resnet" if is_residual else "conv",
        upsample_type="resnet" if is_residual else "conv",
        attention_head_dim=_head_widths(config)[0],
        attn_norm_num_groups=config.groups,
    )


def _block_types(config: UNetConfig, attends: str, plain: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Block types of the levels on the way down, and on the way up, where diffusers counts from the lowest level."""
    kinds = [attends if 2**level in config.attention else plain for level in range(len(config.multipliers))]
    down, up = (tuple(_block_type(kind, way) for kind in order) for order, way in ((kinds, "Down"), (kinds[::-1], "Up")))
    return down, up


def _block_type(kind: str, way: str) -> str:
    return f"{kind}{way}{'sample' if kind == RESIDUAL else ''}Block2D"


def _from_conditional(theirs: UNet2DConditionModel, where: str) -> SizedUNet:
    must_be(where, "resnet_out_scale_factor", theirs.resnet_out_scale_factor, 1.0)
    widths = theirs.block_out_channels
    heads = theirs.attention_head_dim if isinstance(theirs.attention_head_dim, tuple) else (theirs.attention_head_dim,) * len(widths)
    if len(heads) != len(widths) or min(heads) < 1:
        raise UserError(f"{where}: attention_head_dim {heads} is not one number of heads a level")
    head_widths = {width // n for width, n in zip(widths, heads, strict=True)}
    same_heads = len(set(heads)) == 1
    if not same_heads and len(head_widths) > 1:
        raise UserError(f"{where}: attention_head_dim {heads} is neither one number of heads everywhere nor heads of one width")
    return _sized(
        theirs,
        where,
        attends=CROSS,
        plain=PLAIN,
        blocks=theirs.layers_per_block,
        heads=heads[0] if same_heads else None,
        head_width=None if same_heads else head_widths.pop(),
        transformer_depth=theirs.transformer_layers_per_block,
        context_width=theirs.cross_attention_dim,
        vector_width=theirs.projection_class_embeddings_input_dim,
        is_linear=theirs.use_linear_projection,
        token_width=theirs.encoder_hid_dim,
    )


def _from_plain(theirs: UNet2DModel, where: str) -> SizedUNet:
    if theirs.downsample_type != theirs.upsample_type:
        raise UserError(f"{where}: downsample_type {theirs.downsample_type} and upsample_type {theirs.upsample_type} must be the same")
    is_residual = theirs.downsample_type == "resnet"
    return _sized(
        theirs,
        where,
        attends=WITH_ATTENTION,
        plain=RESIDUAL if is_residual else PLAIN,
        blocks=theirs.layers_per_block,
        heads=1 if theirs.attention_head_dim is None else None,
        head_width=theirs.attention_head_dim,
        resample="residual" if is_residual else "conv",
    )


def _sized(
    theirs: _Common,
    where: str,
    *,
    attends: str,
    plain: str,
    blocks: int | Sequence[int],
    heads: int | None,
    head_width: int | None,
    resample: Literal["conv", "residual"] = "conv",
    transformer_depth: int = 0,
    context_width: int | None = None,
    vector_width: int | None = None,
    is_linear: bool = False,
    token_width: int | None = None,
) -> SizedUNet:
    widths = theirs.block_out_channels
    must_be_few(where, "layers_per_block", blocks)
    must_be_few(where, "transformer_layers_per_block", transformer_depth)
    must_be(where, "norm_eps", theirs.norm_eps, NORM_EPS)
    must_be(where, "mid_block_scale_factor", theirs.mid_block_scale_factor, 1.0)
    if not widths or any(width < 1 or width % widths[0] for width in widths):
        raise UserError(f"{where}: block_out_channels {widths} are not multiples of the first")
    must_be(where, "norm_num_groups", theirs.norm_num_groups, groups_for(widths[0]))
    known = {_block_type(attends, "Down"): True, _block_type(plain, "Down"): False}
    if any(kind not in known for kind in theirs.down_block_types) or len(theirs.down_block_types) != len(widths):
        raise UserError(
            f"{where}: down_block_types {', '.join(theirs.down_block_types)}; one a level of {', '.join(known)} can be imported"
        )
    made = UNetConfig(
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=blocks if isinstance(blocks, int) else tuple(blocks),
        attention=tuple(2**level for level, kind in enumerate(theirs.down_block_types) if known[kind]),
        heads=heads,
        head_width=head_width,
        scale_shift=theirs.resnet_time_scale_shift == "scale_shift",
        resample=resample,
        dropout=theirs.dropout,
        transformer_depth=transformer_depth,
        context_width=context_width,
        vector_width=vector_width,
    )
    if _block_types(made, attends, plain)[1] != theirs.up_block_types:
        raise UserError(f"{where}: up_block_types {', '.join(theirs.up_block_types)} are not down_block_types from the other end")
    return SizedUNet(
        config=made,
        in_channels=theirs.in_channels,
        out_channels=theirs.out_channels,
        sample_size=theirs.sample_size,
        is_linear=is_linear,
        token_width=token_width,
    )
