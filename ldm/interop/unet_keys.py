"""Tensor names of the UNet here, in CompVis's code and in diffusers: without them no denoiser or LoRA could be exchanged.

Blocks have CompVis's names here too, so only the modules within them are renamed; diffusers counts blocks by level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ldm.core.errors import UserError
from ldm.interop.keymap import CONV_1D, LINEAR, SAME, Dialect, Form, Hint, KeyMap, Place, Row, key_map, shapes_of
from ldm.networks.unet import UNetConfig

ONE = (Row("", "", ""),)  # a block that is one module
MLP = (Row("0", "0", "linear_1"), Row("2", "2", "linear_2"))
DOWNSAMPLE = (Row("conv", "op", "conv"),)
UPSAMPLE = (Row("conv", "conv", "conv"),)
RESIDUAL = (
    Row("norm1", "in_layers.0", "norm1"),
    Row("conv1", "in_layers.2", "conv1"),
    Row("embed", "emb_layers.1", "time_emb_proj"),
    Row("norm2", "out_layers.0", "norm2"),
    Row("conv2", "out_layers.3", "conv2"),
    Row("skip", "skip_connection", "conv_shortcut"),
)
TRANSFORMER_BLOCK = (
    Row("norm1", "norm1", "norm1"),
    Row("attn1.to_q", "attn1.to_q", "attn1.to_q"),
    Row("attn1.to_k", "attn1.to_k", "attn1.to_k"),
    Row("attn1.to_v", "attn1.to_v", "attn1.to_v"),
    Row("attn1.to_out", "attn1.to_out.0", "attn1.to_out.0"),
    Row("norm2", "norm2", "norm2"),
    Row("attn2.to_q", "attn2.to_q", "attn2.to_q"),
    Row("attn2.to_k", "attn2.to_k", "attn2.to_k"),
    Row("attn2.to_v", "attn2.to_v", "attn2.to_v"),
    Row("attn2.to_out", "attn2.to_out.0", "attn2.to_out.0"),
    Row("norm3", "norm3", "norm3"),
    Row("ff.proj", "ff.net.0.proj", "ff.net.0.proj"),
    Row("ff.out", "ff.net.2", "ff.net.2"),
)
HINTS: dict[Dialect, tuple[Hint, ...]] = {
    "compvis": (
        Hint("attn2.to_k", "context_dim"),
        Hint("attn2.to_v", "context_dim"),
        Hint("transformer_blocks", "transformer_depth"),
        Hint("proj_in", "use_linear_in_transformer"),
        Hint("proj_out", "use_linear_in_transformer"),
        Hint("qkv", "use_spatial_transformer"),
        Hint("input_blocks.0.0.weight", "in_channels, or model_channels"),
        Hint("emb_layers", "use_scale_shift_norm"),
        Hint("label_emb", "num_classes"),
        Hint("out.2", "out_channels"),
        Hint("", "model_channels, channel_mult or num_res_blocks"),
    ),
    "diffusers": (
        Hint("attn2.to_k", "cross_attention_dim"),
        Hint("attn2.to_v", "cross_attention_dim"),
        Hint("transformer_blocks", "transformer_layers_per_block"),
        Hint("proj_in", "use_linear_projection"),
        Hint("proj_out", "use_linear_projection"),
        Hint("conv_in", "in_channels, or block_out_channels"),
        Hint("time_emb_proj", "resnet_time_scale_shift"),
        Hint("class_embedding", "projection_class_embeddings_input_dim"),
        Hint("conv_out", "out_channels"),
        Hint("", "block_out_channels or layers_per_block"),
    ),
}


@dataclass(frozen=True)
class _Split:
    """Queries, keys and values are one tensor here and in CompVis's files, rows ordered (head, q k v, width), and three in diffusers."""

    config: UNetConfig

    def give(self, mine: Tensor) -> tuple[Tensor, ...]:
        heads = self.config.heads_for(len(mine) // 3)
        parts = rearrange(mine, "(n three d) ... -> three (n d) ...", three=3, n=heads).unbind()
        return tuple(part.flatten(1) if part.ndim == 4 else part for part in parts)

    def take(self, theirs: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
        heads = self.config.heads_for(shape[0] // 3)
        return rearrange(torch.stack(theirs), "three (n d) ... -> (n three d) ...", n=heads).reshape(shape)


def unet_keys(config: UNetConfig, in_channels: int, out_channels: int, dialect: Dialect, *, is_linear: bool = False) -> KeyMap:
    """The key map of a UNet.

    Args:
        config, in_channels, out_channels: see `UNetConfig.build`.
        dialect: the peer's.
        is_linear: whether the transformers' projections are linear layers in the peer (Stable Diffusion 2) instead of 1x1 convolutions.

    Raises:
        UserError: no attention in the middle.
    """
    if not config.middle_attention:
        raise UserError("the peers' UNets have attention in the middle; this one has none (middle_attention: false)")
    shapes = shapes_of(lambda: config.build(in_channels, out_channels))
    return key_map(shapes, places(config, LINEAR if is_linear else SAME), dialect, HINTS[dialect])


def places(config: UNetConfig, projections: Form = SAME) -> Iterator[Place]:
    """The names of each block, in the order of the forward pass."""
    attention = _attention(config, projections)
    is_residual = config.resample == "residual"
    last = len(config.multipliers) - 1
    yield Place(MLP, "time_embed", "time_embed", "time_embedding")
    yield Place(MLP, "vector_embed", "label_emb.0", "class_embedding")
    yield _place(ONE, "input_blocks.0.0", "conv_in")
    index = 1
    for level, count in enumerate(config.blocks_of_levels):
        if level > 0:
            yield _place(RESIDUAL if is_residual else DOWNSAMPLE, f"input_blocks.{index}.0", f"down_blocks.{level - 1}.downsamplers.0")
            index += 1
        for number in range(count):
            yield _place(RESIDUAL, f"input_blocks.{index}.0", f"down_blocks.{level}.resnets.{number}")
            if 2**level in config.attention:
                yield _place(attention, f"input_blocks.{index}.1", f"down_blocks.{level}.attentions.{number}")
            index += 1

    yield _place(RESIDUAL, "middle_block.0", "mid_block.resnets.0")
    yield _place(attention, "middle_block.1", "mid_block.attentions.0")
    yield _place(RESIDUAL, "middle_block.2", "mid_block.resnets.1")

    index = 0
    for level in reversed(range(last + 1)):
        count = config.blocks_of_levels[level] + 1
        attends = 2**level in config.attention
        for number in range(count):
            yield _place(RESIDUAL, f"output_blocks.{index}.0", f"up_blocks.{last - level}.resnets.{number}")
            if attends:
                yield _place(attention, f"output_blocks.{index}.1", f"up_blocks.{last - level}.attentions.{number}")
            if level > 0 and number == count - 1:
                block = f"output_blocks.{index}.{1 + attends}"
                yield _place(RESIDUAL if is_residual else UPSAMPLE, block, f"up_blocks.{last - level}.upsamplers.0")
            index += 1
    yield _place(ONE, "out.0", "conv_norm_out")
    yield _place(ONE, "out.2", "conv_out")


def _place(table: tuple[Row, ...], ours: str, diffusers: str) -> Place:
    return Place(table, ours, ours, diffusers)


def _attention(config: UNetConfig, projections: Form) -> tuple[Row, ...]:
    if config.transformer_depth == 0:
        split = _Split(config)
        return (
            Row("norm", "norm", "group_norm"),
            Row("qkv", "qkv", ("to_q", "to_k", "to_v"), CONV_1D, Form(split.give, split.take)),
            Row("proj_out", "proj_out", "to_out.0", CONV_1D, LINEAR),
        )
    blocks = [_within(f"transformer_blocks.{index}", row) for index in range(config.transformer_depth) for row in TRANSFORMER_BLOCK]
    ends = [Row(name, name, name, projections, projections) for name in ("proj_in", "proj_out")]
    return (Row("norm", "norm", "norm"), *ends, *blocks)


def _within(start: str, row: Row) -> Row:
    ours, compvis, diffusers = (f"{start}.{name}" for name in (row.ours, row.compvis, row.diffusers))
    return Row(ours, compvis, diffusers)
