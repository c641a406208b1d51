"""Tensor names of KL and VQ autoencoders here, in CompVis's code and in diffusers: without them no first stage could be exchanged.

Blocks have CompVis's names here too; diffusers counts the decoder's levels from the other end.
"""

from __future__ import annotations

from collections.abc import Iterator

from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.interop.keymap import LINEAR, Dialect, Hint, KeyMap, Place, Row, Unused, key_map, shapes_of

ONE = (Row("", "", ""),)
RESAMPLE = (Row("conv", "conv", "conv"),)
RESIDUAL = (
    Row("norm1", "norm1", "norm1"),
    Row("conv1", "conv1", "conv1"),
    Row("norm2", "norm2", "norm2"),
    Row("conv2", "conv2", "conv2"),
    Row("skip", "nin_shortcut", "conv_shortcut"),
)
ATTENTION = (
    Row("norm", "norm", "group_norm"),
    Row("q", "q", "to_q", diffusers_form=LINEAR),
    Row("k", "k", "to_k", diffusers_form=LINEAR),
    Row("v", "v", "to_v", diffusers_form=LINEAR),
    Row("proj_out", "proj_out", "to_out.0", diffusers_form=LINEAR),
)
HINTS: dict[Dialect, tuple[Hint, ...]] = {
    "compvis": (
        Hint("quantize", "n_embed or embed_dim"),
        Hint("quant_conv", "embed_dim or z_channels"),
        Hint("attn", "attn_resolutions or attn_type"),
        Hint("encoder.conv_out", "z_channels, double_z"),
        Hint("decoder.conv_in", "z_channels"),
        Hint("", "ch, ch_mult or num_res_blocks"),
    ),
    "diffusers": (
        Hint("quantize", "num_vq_embeddings or vq_embed_dim"),
        Hint("quant_conv", "latent_channels"),
        Hint("attentions", "down_block_types or mid_block_add_attention"),
        Hint("", "block_out_channels, layers_per_block or latent_channels"),
    ),
}
OF_THE_LOSS = "of the loss: the discriminator and the perceptual network of training"
UNUSED = (
    Unused("loss.discriminator.", OF_THE_LOSS),
    Unused("loss.perceptual_loss.", OF_THE_LOSS),
    Unused("loss.logvar", OF_THE_LOSS, {"": ()}),
)


def autoencoder_keys(config: ConvolutionalConfig, dialect: Dialect) -> KeyMap:
    """The key map of a KL or VQ autoencoder."""
    shapes = shapes_of(config.build)
    return key_map(shapes, places(config), dialect, HINTS[dialect], UNUSED if dialect == "compvis" else ())


def places(config: ConvolutionalConfig) -> Iterator[Place]:
    """The names of each block."""
    last = len(config.multipliers) - 1
    for half, levels in (("encoder", "down"), ("decoder", "up")):
        yield _place(ONE, f"{half}.conv_in", f"{half}.conv_in")
        for level in range(last + 1):
            ours = f"{half}.{levels}.{level}"
            theirs = f"{half}.{levels}_blocks.{level if levels == 'down' else last - level}"
            for number in range(config.blocks + (levels == "up")):
                yield _place(RESIDUAL, f"{ours}.block.{number}", f"{theirs}.resnets.{number}")
                yield _place(ATTENTION, f"{ours}.attn.{number}", f"{theirs}.attentions.{number}")
            yield _place(RESAMPLE, f"{ours}.{levels}sample", f"{theirs}.{levels}samplers.0")
        yield _place(RESIDUAL, f"{half}.mid.block_1", f"{half}.mid_block.resnets.0")
        yield _place(ATTENTION, f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
        yield _place(RESIDUAL, f"{half}.mid.block_2", f"{half}.mid_block.resnets.1")
        yield _place(ONE, f"{half}.norm_out", f"{half}.conv_norm_out")
        yield _place(ONE, f"{half}.conv_out", f"{half}.conv_out")
    yield _place(ONE, "quant_conv", "quant_conv")
    yield _place(ONE, "post_quant_conv", "post_quant_conv")
    yield Place(ONE, "codebook", "quantize.embedding", "quantize.embedding")


def _place(table: tuple[Row, ...], ours: str, diffusers: str) -> Place:
    return Place(table, ours, ours, diffusers)
