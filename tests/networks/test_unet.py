"""The UNet: published sizes, its initial function, what its output depends on, and the independence of a batch's rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.networks.blocks.spatial_attention import MultiHeadSpatialAttention
from ldm.networks.config import DenoiserNetworkConfig
from ldm.networks.unet import UNet, UNetConfig

# Rombach et al. 2022 and its repository; Stable Diffusion 1.x and 2.x. parameters, in channels, out channels, config
PUBLISHED = {
    "celebahq256": (
        274_056_163,
        3,
        3,
        UNetConfig(channels=224, multipliers=(1, 2, 3, 4), attention=(8, 4, 2), head_width=32, transformer_depth=0),
    ),
    "lsun-churches256": (
        294_966_916,
        4,
        4,
        UNetConfig(
            channels=192,
            multipliers=(1, 2, 2, 4, 4),
            attention=(1, 2, 4, 8),
            heads=8,
            scale_shift=True,
            resample="residual",
            transformer_depth=0,
        ),
    ),
    "imagenet256": (400_920_579, 3, 3, UNetConfig(channels=192, multipliers=(1, 2, 3, 5), attention=(8, 4, 2), heads=1, context_width=512)),
    "imagenet256-f8": (394_984_196, 4, 4, UNetConfig(channels=256, multipliers=(1, 2, 4), head_width=32, context_width=512)),
    "text2img256": (
        403_623_939,
        3,
        3,
        UNetConfig(channels=192, multipliers=(1, 2, 3, 5), attention=(8, 4, 2), head_width=32, context_width=640),
    ),
    "txt2img-1.45b": (872_300_484, 4, 4, UNetConfig(channels=320, multipliers=(1, 2, 4, 4), heads=8, context_width=1280)),
    "landscapes": (215_229_315, 6, 3, UNetConfig(channels=128, multipliers=(1, 4, 8), attention=(32, 16, 8), heads=8, transformer_depth=0)),
    "inpainting-big": (
        387_245_827,
        7,
        3,
        UNetConfig(channels=256, multipliers=(1, 2, 3, 4), attention=(8, 4, 2), heads=8, resample="residual", transformer_depth=0),
    ),
    "layout2img": (
        246_277_379,
        3,
        3,
        UNetConfig(channels=128, multipliers=(1, 2, 3, 4), attention=(8, 4, 2), head_width=32, transformer_depth=3, context_width=512),
    ),
    "superres4x": (
        113_622_563,
        6,
        3,
        UNetConfig(channels=160, multipliers=(1, 2, 2, 4), attention=(16, 8), head_width=32, transformer_depth=0),
    ),
    "sd1": (859_520_964, 4, 4, UNetConfig(channels=320, multipliers=(1, 2, 4, 4), heads=8, context_width=768)),
    "sd2": (865_910_724, 4, 4, UNetConfig(channels=320, multipliers=(1, 2, 4, 4), head_width=64, context_width=1024)),
}

TINY = UNetConfig(channels=8, multipliers=(1, 2, 2), blocks=(1, 2, 1), attention=(2,), head_width=4, context_width=6, vector_width=5)
PLAIN = UNetConfig(
    channels=8, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, transformer_depth=0, scale_shift=True, resample="residual"
)


def nonzero_unet(config: UNetConfig, in_channels: int = 4, seed: int = 0) -> UNet:
    """A network whose zero-initialised weights are not zero."""
    torch.manual_seed(seed)
    net = config.build(in_channels, 4)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net


def inputs_for(config: UNetConfig, count: int = 3, concat: int = 0) -> tuple[Tensor, Tensor, Condition]:
    rng = torch.Generator().manual_seed(1)
    x, network_time = torch.randn(count, 4 - concat, 8, 8, generator=rng), torch.rand(count, generator=rng) * 999
    vector = None if config.vector_width is None else torch.randn(count, config.vector_width, generator=rng)
    tokens = None if config.context_width is None else torch.randn(count, 7, config.context_width, generator=rng)
    mask = None if tokens is None else torch.arange(7)[None] < torch.tensor([3, 7, 5])[:count, None]
    channels = torch.randn(count, concat, 8, 8, generator=rng) if concat else None
    return x, network_time, Condition(vector=vector, tokens=tokens, token_mask=mask, concat=channels)


def row_of(condition: Condition, row: int) -> Condition:
    return Condition(
        **{f.name: None if (t := getattr(condition, f.name)) is None else t[row : row + 1] for f in dataclasses.fields(condition)}
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name: str) -> None:
    parameters, in_channels, out_channels, config = PUBLISHED[name]
    with torch.device("meta"):
        net = config.build(in_channels, out_channels)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_published_network_runs_on_meta() -> None:
    _, in_channels, out_channels, config = PUBLISHED["txt2img-1.45b"]
    with torch.device("meta"):
        net = config.build(in_channels, out_channels)
        out = net(torch.zeros(2, 4, 32, 32), torch.zeros(2), Condition(tokens=torch.zeros(2, 77, 1280)))
    assert out.shape == (2, 4, 32, 32)


@pytest.mark.parametrize("config", [TINY, PLAIN])
def test_fresh_network_is_zero_and_learns(config: UNetConfig) -> None:
    net = config.build(4, 4)
    x, network_time, condition = inputs_for(config)
    out = net(x, network_time, condition)
    assert_close(out, torch.zeros_like(x), rtol=0, atol=0)
    (out - 1).square().sum().backward()
    assert net.out[2].weight.grad.any()


@pytest.mark.parametrize("config", [TINY, PLAIN])
def test_rows_are_independent(config: UNetConfig) -> None:
    net = nonzero_unet(config)
    x, network_time, condition = inputs_for(config)
    together = net(x, network_time, condition)
    for row in range(3):
        alone = net(x[row : row + 1], network_time[row : row + 1], row_of(condition, row))
        assert_close(alone, together[row : row + 1], rtol=1e-5, atol=1e-5)


def test_output_depends_on_the_whole_condition() -> None:
    """The output depends on the time, the vector, the tokens that are not masked, and the concatenated channels; not on masked tokens."""
    net = nonzero_unet(TINY)
    x, network_time, condition = inputs_for(TINY, concat=2)
    out = net(x, network_time, condition)

    def change(**parts: Tensor) -> float:
        return float((net(x, parts.pop("network_time", network_time), dataclasses.replace(condition, **parts)) - out).abs().max().detach())

    noise = torch.randn(condition.tokens.shape)
    unmasked = condition.token_mask[..., None]
    assert change(network_time=network_time + 40.5) > 1e-3
    assert change(vector=condition.vector + 1) > 1e-3
    assert change(concat=condition.concat + torch.randn(condition.concat.shape)) > 1e-3
    assert change(tokens=condition.tokens + noise * unmasked) > 1e-4
    assert change(tokens=condition.tokens + noise * ~unmasked) == 0


@pytest.mark.parametrize("config", [TINY, PLAIN])
def test_checkpointing_changes_memory_only(config: UNetConfig) -> None:
    grads = []
    for checkpointing in (False, True):
        net = nonzero_unet(dataclasses.replace(config, checkpointing=checkpointing, dropout=0.3))
        x, network_time, condition = inputs_for(config)
        saved = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        torch.manual_seed(7)  # dropout draws the same twice, and again when recomputed
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = net(x, network_time, condition).square().sum()
        grads.append((saved, torch.autograd.grad(loss, list(net.parameters()))))
    (plain, expected), (saved, recomputed) = grads
    assert saved < plain / 2
    for mine, reference in zip(recomputed, expected, strict=True):
        assert_close(mine, reference, rtol=0, atol=0)


def test_memory_format_changes_nothing() -> None:
    net = nonzero_unet(TINY)
    x, network_time, condition = inputs_for(TINY)
    out = net(x, network_time, condition)
    last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), network_time, condition)
    assert_close(last, out, rtol=1e-4, atol=1e-4)


def test_bfloat16_weights_take_float32_conditions() -> None:
    net = nonzero_unet(TINY).bfloat16()
    x, network_time, condition = inputs_for(TINY)
    out = net(x, network_time, condition)
    assert_close(out.float(), nonzero_unet(TINY)(x, network_time, condition), rtol=0.1, atol=0.1)


def test_the_pair_with_and_without_attention() -> None:
    """Removing the attention removes exactly its parameters, and the network still runs."""
    shape = {"channels": 64, "multipliers": (1, 2, 2, 4), "blocks": 1, "transformer_depth": 0}
    with torch.device("meta"):
        attending = UNetConfig(**shape, attention=(2, 4, 8), heads=4).build(3, 3)
        plain = UNetConfig(**shape, attention=(), middle_attention=False).build(3, 3)
    assert sum(p.numel() for p in attending.parameters()) == 12_957_763
    attended = sum(p.numel() for m in attending.modules() if isinstance(m, MultiHeadSpatialAttention) for p in m.parameters())
    assert sum(p.numel() for p in plain.parameters()) == 12_957_763 - attended
    assert not any(isinstance(m, MultiHeadSpatialAttention) for m in plain.modules())
    small = UNetConfig(channels=8, multipliers=(1, 2), transformer_depth=0, attention=(), middle_attention=False).build(1, 1)
    assert small(torch.randn(2, 1, 4, 4), torch.zeros(2), Condition()).shape == (2, 1, 4, 4)


def test_config_is_a_kind_of_its_family() -> None:
    assert DenoiserNetworkConfig.of_kind("unet") is UNetConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 2}, "exactly one of heads and head_width, got heads=2, head_width=4"),
        ({"head_width": None}, "exactly one of heads and head_width, got heads=None, head_width=None"),
        ({"head_width": 5}, "head_width 5 does not divide the 16 channels"),
        ({"head_width": None, "heads": 3}, "heads 3 does not divide the 16 channels"),
        ({"attention": (), "middle_attention": False}, "neither heads nor head_width: there is no attention, got heads=None, head_width=4"),
        ({"blocks": (1, 2)}, r"one per level \(3 levels\)"),
        ({"attention": (3,)}, r"1, 2, 4, 8, ...; got \(3,\)"),
        ({"transformer_depth": 0}, "context_width needs transformer_depth"),
        ({"transformer_depth": -1}, "transformer_depth must be at least 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"attention_backend": "sdp"}, "Did you mean 'sdpa'"),
        ({"resample": "bilinear"}, "'bilinear'; allowed: conv, residual"),
        ({"multipliers": ()}, "at least 1, got 8 and"),
    ],
)
def test_mistakes_in_the_config_are_named(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)


def test_mistakes_in_the_input_are_named() -> None:
    net = TINY.build(4, 4)
    x, network_time, condition = inputs_for(TINY)
    wide = Condition(vector=condition.vector, tokens=torch.zeros(3, 7, 9))
    for bad_x, bad_condition, message in (
        (torch.zeros(3, 4, 8, 10), condition, r"multiples of 4 \(4, 8, ...\), not 8 x 10"),
        (torch.zeros(3, 3, 8, 8), condition, "takes 4 input channels, not 3"),
        (x, dataclasses.replace(condition, concat=torch.zeros(3, 1, 8, 8)), "takes 4 input channels, not 5, 1 of them from the condition"),
        (
            x,
            dataclasses.replace(condition, tokens=None, token_mask=None),
            "condition.tokens is missing, but this network has context_width 6",
        ),
        (x, dataclasses.replace(condition, vector=None), "condition.vector is missing, but this network has vector_width 5"),
        (x, wide, "condition.tokens has width 9, but this network has context_width 6"),
    ):
        with pytest.raises(UserError, match=message):
            net(bad_x, network_time, bad_condition)
    with pytest.raises(UserError, match="condition.tokens has width 6, but this network was built without context_width"):
        PLAIN.build(4, 4)(x, network_time, Condition(tokens=condition.tokens))
    with pytest.raises(UserError, match="condition.vector has width 5, but this network was built without vector_width"):
        PLAIN.build(4, 4)(x, network_time, Condition(vector=condition.vector))
