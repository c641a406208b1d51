"""The blocks: their initial function, and comparisons with independent computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from ldm.networks.blocks.norm import group_norm
from ldm.networks.blocks.pointwise import pointwise
from ldm.networks.blocks.resample import Downsample, Upsample, double
from ldm.networks.blocks.residual import ResidualBlock
from ldm.networks.blocks.spatial_attention import MultiHeadSpatialAttention, SpatialSelfAttention
from ldm.networks.blocks.transformer import GatedFeedForward, SpatialTransformer
from ldm.networks.embed import time_embedding


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (96, 32), (320, 32), (48, 24), (32, 16), (20, 10), (7, 1), (1, 1)])
def test_group_norm_takes_the_largest_number_of_groups_that_fits(channels: int, groups: int) -> None:
    norm = group_norm(channels)
    assert (norm.num_groups, norm.eps) == (groups, 1e-6)


def test_time_embedding_is_the_published_one() -> None:
    network_time = torch.tensor([0.0, 1.0, 999.0, 12.5])
    table = time_embedding(network_time, 8)
    for row, t in zip(table, network_time.tolist(), strict=True):
        angles = [t * 10_000 ** (-i / 4) for i in range(4)]
        assert_close(row, torch.tensor([*map(math.cos, angles), *map(math.sin, angles)]), rtol=0, atol=1e-4)
    assert_close(table[0], torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))
    assert not time_embedding(network_time, 9)[:, 8].any()


def test_downsample_pads_on_the_documented_sides() -> None:
    """With a kernel that is nonzero only at its first tap, the output shows the first pixel of each window."""
    x = torch.arange(1.0, 17).reshape(1, 1, 4, 4)
    for asymmetric, corner in ((True, [[1.0, 3], [9, 11]]), (False, [[0.0, 0], [0, 6]])):
        down = Downsample(1, asymmetric_pad=asymmetric)
        torch.nn.init.zeros_(down.conv.weight).data[0, 0, 0, 0] = 1
        torch.nn.init.zeros_(down.conv.bias)
        assert_close(down(x)[0, 0], torch.tensor(corner))


def test_upsample_repeats_pixels() -> None:
    up = Upsample(1)
    torch.nn.init.zeros_(up.conv.weight).data[0, 0, 1, 1] = 1
    torch.nn.init.zeros_(up.conv.bias)
    x = torch.tensor([[[[1.0, 2], [3, 4]]]])
    assert_close(up(x)[0, 0], torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(9, 11), (3, 5)])
def test_upsampling_is_the_convolution_of_the_doubled_map(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = Upsample(5, 7).double()
    x = torch.randn(2, 5, *size, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    parameters = (x, layer.conv.weight, layer.conv.bias)
    found, wanted = layer(x), layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert_close(found, wanted)
    assert found.is_contiguous(memory_format=memory_format)
    weight = torch.randn_like(found)
    for ours, theirs in zip(*(torch.autograd.grad((out * weight).sum(), parameters) for out in (found, wanted)), strict=True):
        assert_close(ours, theirs)


def test_doubling_is_interpolation_to_the_bit() -> None:
    x = torch.randn(2, 3, 5, 4)
    for same in (x, x.to(memory_format=torch.channels_last)):
        assert torch.equal(double(same), F.interpolate(x, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_product_of_matrices_is_the_convolution_1x1(memory_format: torch.memory_format) -> None:
    layer = nn.Conv2d(6, 4, 1).double()
    x = torch.randn(2, 6, 5, 3, dtype=torch.float64).to(memory_format=memory_format)
    assert_close(pointwise(layer, x), layer(x))


@pytest.mark.parametrize("channels", [4, 32, 64])
def test_an_added_embedding_survives_the_norm(channels: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(channels, channels, embed_width=16)
    x, emb = torch.randn(2, channels, 8, 8), torch.randn(2, 16)
    assert float((block(x, emb + 1) - block(x, emb)).detach().abs().max()) > 0.01


@pytest.mark.parametrize("scale_shift", [False, True])
def test_zero_init_block_is_its_skip_connection(scale_shift: bool) -> None:
    x, emb = torch.randn(2, 32, 8, 8), torch.randn(2, 16)
    block = ResidualBlock(32, 32, embed_width=16, scale_shift=scale_shift, zero_init=True)
    assert_close(block(x, emb), x, rtol=0, atol=0)
    down = ResidualBlock(32, 32, embed_width=16, scale_shift=scale_shift, zero_init=True, down=True)
    assert_close(down(x, emb), F.avg_pool2d(x, 2), rtol=0, atol=0)
    up = ResidualBlock(32, 32, embed_width=16, scale_shift=scale_shift, zero_init=True, up=True)
    assert_close(up(x, emb), x.repeat_interleave(2, 2).repeat_interleave(2, 3), rtol=0, atol=0)


def test_scale_shift_follows_the_second_norm() -> None:
    """Dhariwal & Nichol 2021, sec. 3: AdaGN(h, y) = (1 + y_s) GroupNorm(h) + y_b, the scale being the first half."""
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, embed_width=4, scale_shift=True, groups=2)
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    y = F.linear(F.silu(emb), block.embed.weight, block.embed.bias)
    h = F.conv2d(F.silu(F.group_norm(x, 2, eps=1e-6)), block.conv1.weight, block.conv1.bias, padding=1)
    h = F.group_norm(h, 2, eps=1e-6) * (1 + y[:, :8, None, None]) + y[:, 8:, None, None]
    assert_close(block(x, emb), x + F.conv2d(F.silu(h), block.conv2.weight, block.conv2.bias, padding=1))


def test_attention_blocks_match_a_loop_over_pixels() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 3, 3)
    one = SpatialSelfAttention(8)
    two = MultiHeadSpatialAttention(8, heads=2, eps=1e-6)
    torch.nn.init.normal_(two.proj_out.weight)
    # One block's weights in the other's layout: rows of (head, q k v, width).
    parts = [part.weight.detach().reshape(2, 4, 8, 1, 1) for part in (one.q, one.k, one.v)]
    two.qkv.weight.data = torch.stack(parts, dim=1).reshape(24, 8, 1, 1)
    for part in (one.q, one.k, one.v, two.qkv):
        torch.nn.init.zeros_(part.bias)

    h = F.group_norm(x, 4, eps=1e-6).flatten(2)
    q, k, v = (torch.einsum("oc,bcl->bol", part.weight[:, :, 0, 0], h) for part in (one.q, one.k, one.v))
    for block, heads in ((one, 1), (two, 2)):
        mixed = torch.zeros_like(h)
        for part in range(heads):
            rows = slice(part * 8 // heads, (part + 1) * 8 // heads)
            for pixel in range(9):
                weights = torch.softmax((q[:, rows, pixel, None] * k[:, rows]).sum(1) / math.sqrt(8 / heads), dim=1)
                mixed[:, rows, pixel] = (v[:, rows] * weights[:, None]).sum(2)
        expected = x + F.conv2d(mixed.reshape(x.shape), block.proj_out.weight, block.proj_out.bias)
        assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_attention_blocks_start_as_the_identity() -> None:
    x = torch.randn(2, 32, 4, 4)
    assert_close(MultiHeadSpatialAttention(32, 4)(x), x, rtol=0, atol=0)
    assert_close(SpatialTransformer(32, 4, context_width=8)(x, torch.randn(2, 5, 8)), x, rtol=0, atol=0)


def test_feed_forward_gates_its_first_half_by_the_gelu_of_its_second() -> None:
    block = GatedFeedForward(4)
    x = torch.randn(2, 3, 4)
    inside = F.linear(x, block.proj.weight, block.proj.bias)
    gate = inside[..., 16:]
    gelu = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
    assert_close(block(x), F.linear(inside[..., :16] * gelu, block.out.weight, block.out.bias))


@pytest.mark.parametrize(
    "block", [SpatialTransformer(8, 2, depth=2, context_width=6), MultiHeadSpatialAttention(8, 2), SpatialSelfAttention(8)]
)
def test_every_pixel_attends_to_every_other_without_positions(block: nn.Module) -> None:
    """Attention does not depend on positions: a flipped input gives the flipped output. And one pixel affects all the others."""
    torch.manual_seed(0)
    nn.init.normal_(block.proj_out.weight)
    tokens = (torch.randn(1, 5, 6),) if isinstance(block, SpatialTransformer) else ()
    x = torch.randn(1, 8, 2, 3, requires_grad=True)
    out = block(x, *tokens)
    assert_close(block(x.flip(3), *tokens), out.flip(3), rtol=1e-5, atol=1e-5)
    assert_close(block(x.flip(2), *tokens), out.flip(2), rtol=1e-5, atol=1e-5)

    y = x.detach().clone()
    y[..., 0, 0] = y[..., 0, 0].reshape(1, 4, 2).flip(2).flatten(1)  # one pixel changes; the norm's groups keep their mean and variance
    change = (block(y, *tokens) - out).detach().abs().amax(1)[0]
    assert change.min() > 1e-4
